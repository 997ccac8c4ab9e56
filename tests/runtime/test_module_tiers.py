"""Tests of plans whose steps compute from a device's memory: SSD to DRAM to HBM, DRAM to HBM, SSD to HBM."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.check import check
from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.plan import Plan, Residency, Transfer
from tensorstow.planner.build import plan_graph
from tensorstow.runtime.module import ModuleExecutor
from tensorstow.runtime.module.devices import CudaDevice
from tensorstow.runtime.module.fake_device import FakeDevice

from .plans import NOT_OURS
from .recorded import PAGE, Recorded, record, release
from .small_module import Small, tokens

pytestmark = pytest.mark.usefixtures("one_thread")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WAYS = ["ssd-dram-hbm", "dram-hbm", "ssd-hbm"]


def tower(way: str, hbm: int, dram: int) -> Machine:
    """A machine of these tiers, the device's first."""
    kinds = {"hbm": TierKind.HBM, "dram": TierKind.DRAM, "ssd": TierKind.SSD}
    sizes = {"hbm": hbm, "dram": dram, "ssd": 1 << 40}
    names = way.split("-")[::-1]
    links: list[Link] = []
    for upper, lower in pairwise(names):
        rate = 2e9 if upper == "hbm" else 1e9
        links += [Link(lower, upper, rate, chunk_nbytes=PAGE), Link(upper, lower, rate, chunk_nbytes=PAGE)]
    return Machine(
        name=way,
        tiers=tuple(Tier(n, kinds[n], sizes[n], alignment=PAGE if n == names[-1] else 64) for n in names),
        links=tuple(links),
        units=(Unit("gpu", "hbm", (("float32", 1e12),), 1e12),),
    )


class Strict(FakeDevice):
    """A fake device that spoils, at each instant, whatever the plan keeps no bytes in there."""

    def __init__(self, plan: Plan, capacity_nbytes: int) -> None:
        super().__init__(capacity_nbytes)
        self.plan = plan
        self.spoiled_nbytes = 0

    @property
    def marks(self) -> Mapping[int, Callable[[], None]]:
        before = super().marks
        return {t: partial(self._spoil, t, before.get(t)) for t in range(len(self.plan.steps))}

    def _spoil(self, instant: int, then: Callable[[], None] | None) -> None:
        total, at = len(self.plan.steps), 0
        live = [
            (r.offset, r.offset + r.nbytes)
            for r in self.plan.residencies
            if r.tier == "hbm" and any(r.start <= instant + turn <= r.end for turn in (0, total))
        ]
        for lo, hi in [*sorted(live), (self.nbytes, self.nbytes)]:
            if at < lo:
                self.elements.data[at:lo].fill_(0xFF)
                self.spoiled_nbytes += lo - at
            at = max(at, hi)
        if then is not None:
            then()


@dataclass
class Made:
    """A network with a plan for a device, and what it gives for some inputs."""

    module: Any
    cases: list[tuple[torch.Tensor, torch.Tensor]]
    recorded: Recorded
    plan: Plan
    machine: Machine

    def execute(self, device: Any = None) -> ModuleExecutor:
        release(self.module, self.recorded.program)
        made = self.recorded
        device = device or Strict(self.plan, self.machine.tier["hbm"].capacity_nbytes)
        return ModuleExecutor(self.plan, made.graph, made.program, made.store, self.machine, self.module, device=device)


def make(
    folder: Path,
    way: str,
    hbm: float,
    dram: float = 0.5,
    strategy: str = "stow",
    kept_nbytes: int = 256,
    **options: Any,
) -> Made:
    """`hbm` and `dram` are shares of what lies between the smallest budget and all weights."""
    torch.manual_seed(0)
    module = Small().eval()
    inputs = [tokens(1, 2, 5), tokens(2, 1, 1), tokens(3, 3, 9)]
    with torch.no_grad():
        cases = [(i, module(i)) for i in inputs]
    recorded = record(module, lambda: module(inputs[0]), folder, kept_nbytes=kept_nbytes, **options)
    least, whole = recorded.smallest, recorded.nbytes

    def budget(share: float) -> int:
        return least + int(share * (whole - least)) + PAGE

    at = tower(way, budget(hbm), whole + PAGE if way == "dram-hbm" else budget(dram))
    plan = plan_graph(recorded.graph, at, strategy=strategy, time_limit_s=1)
    assert not check(plan, recorded.graph, at)
    return Made(module, cases, recorded, plan, at)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.0])
@pytest.mark.parametrize(("strategy", "kept_nbytes"), [("stow", 256), ("on-demand", 0)])
def test_bits_are_those_of_the_module_alone(
    tmp_path: Path, way: str, share: float, strategy: str, kept_nbytes: int
) -> None:
    made = make(tmp_path, way, share, max(share, 0.2), strategy, kept_nbytes)
    device = Strict(made.plan, made.machine.tier["hbm"].capacity_nbytes)
    with made.execute(device) as executor:
        for _ in range(3):
            for inputs, expected in made.cases:
                assert torch.equal(made.module(inputs), expected)
        read = copied = 0
        for inputs, expected in made.cases * 2:
            assert torch.equal(executor.run(inputs), expected)
            read += executor.stats.read_nbytes
            copied += executor.stats.copied_nbytes
            assert executor.stats.written_nbytes == 0
        moved = made.plan.certificate.moved_nbytes
        home = sum(n for link, n in moved.items() if link.startswith(f"{made.plan.home_tier}->"))
        assert abs(read - 6 * home) <= home
        assert abs(copied - 6 * (sum(moved.values()) - home)) <= sum(moved.values()) - home
        assert device.nbytes - PAGE < made.plan.arena_nbytes["hbm"] <= device.capacity_nbytes
        pinned = {"ssd-dram-hbm": made.plan.arena_nbytes.get("dram", 0), "dram-hbm": made.recorded.nbytes}.get(way)
        if pinned:
            assert device.pinned_nbytes == [-(-pinned // PAGE) * PAGE]
        if share < 1:
            assert sum(moved.values()) > 0
            assert device.spoiled_nbytes > 0 or share > 0.4
    assert device.nbytes == 0
    assert device.pinned_nbytes == []


def test_transfers_and_callers_that_take_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path, "ssd-dram-hbm", 0.2, 0.3)
    assert {t.link for t in made.plan.transfers} == {"ssd->dram", "dram->hbm"}
    dice = random.Random(1)
    read = made.recorded.store.read

    def late(*args: Any, **options: Any) -> None:
        time.sleep(dice.random() * 2e-3)
        read(*args, **options)

    monkeypatch.setattr(made.recorded.store, "read", late)
    with made.execute() as executor:
        for inputs, expected in made.cases * 4:
            time.sleep(dice.random() * 2e-3)
            assert torch.equal(executor.run(inputs), expected)


@pytest.mark.parametrize("way", WAYS)
def test_controls_profile_and_partial_calls_leave_the_results_alone(tmp_path: Path, way: str) -> None:
    made = make(tmp_path, way, 0.2, 0.3, looked_up=["table"])
    inputs, expected = made.cases[0]
    x = torch.randn(2, 4, 32)
    with torch.no_grad():
        partial_expected = made.module.layers[2](made.module.layers[0](x))
    truth = made.module.layers[1].gates.detach().clone()
    with made.execute() as executor:
        first = executor.load()
        assert first > 0
        assert executor.load() == (0 if way == "dram-hbm" else first)
        assert executor.compute_only(inputs) > 0
        assert executor.io_only() > 0
        assert torch.equal(made.module(inputs), expected)
        assert torch.equal(made.module.layers[2](made.module.layers[0](x)), partial_expected)
        profile = executor.profile(2, inputs)
        assert set(profile.lane_bytes_per_s) == {t.link for t in made.plan.transfers}
        assert torch.equal(made.module.layers[1].gates.clone(), truth)
        with pytest.raises(IndexError):
            made.module(torch.tensor([[100]]))
        assert torch.equal(made.module(inputs), expected)


def test_weights_in_the_hosts_memory_are_read_from_the_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, "dram-hbm", 0.1)
    assert made.plan.home_tier == "dram"
    with made.execute() as executor:
        assert executor.load() == sum(s.nbytes for s in made.recorded.graph.storages)

        def gone(*_: object, **__: object) -> None:
            raise ExecutionError("the disk is gone")

        monkeypatch.setattr(made.recorded.store, "read", gone)
        for inputs, expected in made.cases * 2:
            assert torch.equal(executor.run(inputs), expected)
            assert executor.load() == 0


class Again(nn.Module):
    """Its first layer is its last one, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(64, 64, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(torch.tanh(self.c(torch.relu(self.b(torch.tanh(self.a(x)))))))


def there_and_back(made: Recorded) -> tuple[Plan, Machine]:
    """A plan by hand: a weight comes from the disk, goes from the device to the host, and comes back elsewhere."""
    a, b, c = (s.id for s in made.graph.storages)
    n = made.graph.storage[a].nbytes
    at = tower("ssd-dram-hbm", 4 * n, n)
    at = replace(at, links=(*at.links, Link("ssd", "hbm", 1e9), Link("hbm", "ssd", 1e9)))
    stays = (
        Residency(a, "hbm", 0, n, 0, 0, 2),
        Residency(a, "dram", 0, n, 0, 1, 3),
        Residency(a, "hbm", 0, n, n, 2, 4),
        Residency(b, "hbm", 0, n, 2 * n, 0, 4),
        Residency(c, "hbm", 0, n, 3 * n, 0, 4),
    )
    moves = (
        Transfer(a, 0, n, "ssd", "hbm", 0, 0),
        Transfer(a, 0, n, "hbm", "dram", 1, 2),
        Transfer(a, 0, n, "dram", "hbm", 2, 3),
    )
    plan = plan_graph(made.graph, at, strategy="on-demand", time_limit_s=2)
    sizes = {"hbm": 4 * n, "dram": n}
    plan = replace(plan, home_tier="ssd", residencies=stays, transfers=moves, arena_nbytes=sizes, capacity_nbytes=sizes)
    assert not [v for v in check(plan, made.graph, at) if v.kind not in NOT_OURS]
    return plan, at


def test_a_copy_from_the_device_to_the_host_and_back(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Again().eval()
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = module(x)
    recorded = record(module, lambda: module(x), tmp_path)
    plan, at = there_and_back(recorded)
    with Made(module, [(x, expected)], recorded, plan, at).execute() as executor:
        for _ in range(4):
            assert torch.equal(executor.run(x), expected)
        lanes = executor._memory.engine.lanes  # pyright: ignore[reportPrivateUsage]
        n = recorded.graph.storages[0].nbytes
        assert [lanes[link].copied_nbytes for link in ("ssd->hbm", "hbm->dram", "dram->hbm")] == [0, 4 * n, 4 * n]
        assert lanes["ssd->hbm"].read_nbytes in (4 * n, 5 * n)  # the next pass has begun to load


def test_what_fails_while_moving_ends_the_call_and_not_the_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path, "ssd-dram-hbm", 0.0, 0.1)
    inputs, expected = made.cases[0]
    with made.execute() as executor:
        executor.run(inputs)
        for kind in (ExecutionError("the disk is gone"), ValueError("the wire is cut")):

            def broken(*_: object, error: Exception = kind, **__: object) -> None:
                raise error

            with monkeypatch.context() as patch:
                if isinstance(kind, ExecutionError):
                    patch.setattr(made.recorded.store, "read", broken)
                else:
                    patch.setattr("tensorstow.runtime.module.fake_device._Wire.pass_through", broken)
                with pytest.raises(ExecutionError, match=str(kind)):
                    for _ in range(3):
                        made.module(inputs)
            assert torch.equal(made.module(inputs), expected)


def test_a_copy_without_its_mark_is_noticed(tmp_path: Path) -> None:
    made = make(tmp_path, "ssd-dram-hbm", 0.0, 0.1)
    with made.execute() as executor:
        executor.load()
        executor._memory.marks.clear()  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(ExecutionError, match="began for the 1th time without its mark"):
            made.module(made.cases[0][0])


def test_what_this_box_is_not_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(tmp_path, "ssd-dram-hbm", 0.2)
    before = made.module.state_dict()

    def refused(text: str, error: type[Exception] = PlanMismatchError, **changes: Any) -> None:
        given: dict[str, Any] = {
            "plan": made.plan,
            "graph": made.recorded.graph,
            "program": made.recorded.program,
            "store": made.recorded.store,
            "machine": made.machine,
            "module": made.module,
        }
        with pytest.raises(error, match=text):
            ModuleExecutor(**{**given, **changes})
        assert all(torch.equal(v, before[n]) for n, v in made.module.state_dict().items())

    if not torch.cuda.is_available():
        refused(r"unit 'gpu' from tier 'hbm' \(hbm\).*(built without CUDA|finds no CUDA device)")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        refused(r"finds no CUDA device \(there is none, or no driver for CUDA 13\.0\)")
    tiers = made.machine.tiers
    sram = replace(made.machine, tiers=(replace(tiers[0], kind=TierKind.SRAM), *tiers[1:]))
    refused(r"from tier 'hbm' \(sram\).*plan for such a machine", machine=sram)
    refused("needs [0-9]+ bytes, the device has 100", ExecutionError, device=FakeDevice(100))
    remote = replace(made.machine, tiers=(tiers[0], replace(tiers[1], kind=TierKind.REMOTE), tiers[2]))
    refused("one there, the host's dram", machine=remote, device=FakeDevice(1 << 30))
    weight = made.plan.transfers[0].storage
    back = Transfer(weight, 0, PAGE, "dram", "ssd", 0, 1)
    spilling = replace(made.plan, transfers=(*made.plan.transfers, back))
    refused(f"writes '{weight}' to 'ssd'", plan=spilling, device=FakeDevice(1 << 30))
    made.module.to("meta")
    with pytest.raises(InputError, match="no values"):
        ModuleExecutor(
            made.plan,
            made.recorded.graph,
            replace(made.recorded.program, parameters=made.recorded.program.parameters[1:]),
            made.recorded.store,
            made.machine,
            made.module,
            device=FakeDevice(1 << 30),
        )


@pytest.fixture
def plain_products() -> Generator[None]:
    """The same kernels in every run."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_bits_on_a_cuda_device(tmp_path: Path, way: str, share: float, plain_products: None) -> None:
    made = make(tmp_path, way, share, dram=max(share, 0.1))
    eager = Small().eval()
    eager.load_state_dict(made.module.state_dict())
    eager.cuda()
    with torch.no_grad():
        cases = [(i.cuda(), eager(i.cuda())) for i, _ in made.cases]
    with made.execute(CudaDevice(torch.cuda.current_device())) as executor:
        assert made.module.layers[0].gates.device.type == "cuda"
        assert made.module.to("cuda") is made.module
        for _ in range(20):
            for inputs, expected in cases:
                assert torch.equal(executor.run(inputs), expected)
        assert executor.compute_only(cases[0][0]) > 0
        assert executor.io_only() > 0
        assert torch.equal(made.module(cases[0][0]), cases[0][1])


@pytest.mark.gpu
@needs_cuda
def test_cuda_kernels_that_lag_behind_still_read_their_weights(tmp_path: Path, plain_products: None) -> None:
    """Wide layers and many rows, so that kernels are still queued when their weights' places are due for others."""
    torch.manual_seed(5)
    module = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(12))).eval()
    x = torch.randn(8192, 1024)
    eager = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(12))).cuda()
    eager.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = eager(x.cuda())
        recorded = record(module, lambda: module(x[:2]), tmp_path)
    at = tower("ssd-dram-hbm", 3 * recorded.smallest, 4 * recorded.smallest)
    plan = plan_graph(recorded.graph, at, strategy="belady-prefetch", time_limit_s=2)
    with Made(module, [], recorded, plan, at).execute(CudaDevice(torch.cuda.current_device())):
        for _ in range(10):
            assert torch.equal(module(x.cuda()), expected)


@pytest.mark.gpu
@needs_cuda
def test_a_cuda_device_with_too_little_memory(tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    with pytest.raises(ExecutionError, match="free of"):
        CudaDevice(torch.cuda.current_device()).open(2 * total, tier="hbm")
