"""Steps that cannot be traced: planned from a profile, run by hooks, with the bits of the plain step."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.ir.check import check
from tensorstow.report_training import fates
from tests.conftest import Cli
from tests.runtime.training_steps import box

WIDTH, ROWS = 128, 512

SCRIPT = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if float(x.detach().mean()) > 2:  # never, but who knows
                x = x + 1
        return x.square().mean()

def make():
    torch.manual_seed(0)
    return Branching(), (torch.randn(512, 128),)
"""


class Branching(nn.Module):
    """Whether a layer's result is scaled depends on the data."""

    def __init__(self, layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, WIDTH] to the loss."""
        for layer in self.layers:
            x = self.dropout(torch.tanh(layer(x)))
            if float(x.detach().mean()) > 0:  # the data decide
                x = x * 2
        return x.square().mean()


pytestmark = pytest.mark.usefixtures("one_thread")


def made() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return Branching(), (torch.randn(ROWS, WIDTH),)


def planned(module: nn.Module, batch: tuple[torch.Tensor], dram: str | int, optimizer: Any = None) -> ts.PlanFile:
    machine = ts.Machine.detect(dram=dram)
    return ts.plan(module, batch, machine=machine, mode="training", optimizer=optimizer, time_limit_s=2.0)


def test_a_step_that_cannot_be_traced_is_run_by_hooks_with_the_bits_of_the_plain_one() -> None:
    module, batch = made()
    twin = copy.deepcopy(module)
    roomy = planned(module, batch, "1GiB")
    assert roomy.training is not None and roomy.training.hooked is not None
    everything = roomy.plan.certificate.peak_nbytes["dram"]
    arena = roomy.plan.arena_nbytes["dram"]
    file = planned(module, batch, everything - arena // 2)
    assert file.training is not None and file.training.hooked is not None
    assert not check(file.plan, file.graph, file.machine)
    assert not torch.is_tensor(next(module.parameters()).grad), "planning leaves no gradients"
    found = fates(file, file.training)
    assert found.offloaded.count > 0 and found.recomputed.count == 0
    with pytest.warns(UserWarning, match=r"test_training_hooked.py:\d+: if float\(x.detach\(\).mean\(\)\) > 0"):
        step: Any = ts.apply(file, module)
    with step:
        ours, plain = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (module, twin))
        for seed in range(3):
            for run, m, optimizer in ((step, module, ours), (twin, twin, plain)):
                optimizer.zero_grad()
                torch.manual_seed(seed)
                run(*batch).backward()
                optimizer.step()
                assert m is module or all(
                    torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
                    for a, b in zip(module.parameters(), twin.parameters(), strict=True)
                )
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
        counted = step.saved.stats
        assert counted.offloaded >= 3 * found.offloaded.count and counted.deviations == 0
        assert counted.peak_nbytes <= file.plan.arena_nbytes["dram"]
        assert step.stats.written_nbytes > 0
        module.eval()
        with torch.no_grad():
            assert torch.equal(step(*batch), twin.eval()(*batch))


def test_with_its_optimizer_the_call_is_the_whole_step() -> None:
    module, batch = made()
    twin = copy.deepcopy(module)
    ours, plain = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (module, twin))
    file = planned(module, batch, "1GiB", ours)
    with_states = planned(module, batch, "1GiB")
    parameters = sum(p.nbytes for p in module.parameters())
    assert file.training is not None and with_states.training is not None
    # Two states of each parameter; what the profile finds beside them differs by what the tracer sees of small things.
    assert file.training.kept_nbytes - with_states.training.kept_nbytes == pytest.approx(2 * parameters, rel=0.2)
    with pytest.warns(UserWarning, match="by hooks"):
        step: Any = ts.apply(file, module)
    with step:
        for seed in range(3):
            torch.manual_seed(seed)
            got = step(*batch)
            torch.manual_seed(seed)
            wanted = twin(*batch)
            wanted.backward()
            plain.step()
            plain.zero_grad()
            assert torch.equal(got, wanted.detach()) and not got.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
        module.eval()
        torch.testing.assert_close(step(*batch), twin.eval()(*batch), rtol=0, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True)), "no update"
    with pytest.raises(ts.ExecutionError, match="closed"):
        step(*batch)


def test_a_budget_below_what_the_step_needs_says_what_it_takes() -> None:
    module, batch = made()
    with pytest.raises(ts.InfeasibleError, match="smallest feasible budget") as caught:
        planned(module, batch, 100_000)
    assert caught.value.smallest_nbytes is not None
    planned(module, batch, int(1.2 * caught.value.smallest_nbytes))


def test_what_cannot_be_run_here_is_refused_with_the_line() -> None:
    module, batch = made()
    for given, machine in ((module, box(1 << 30)), (copy.deepcopy(module).to("meta"), ts.Machine.detect())):
        with pytest.raises(ts.InputError, match=r"if float\(x.detach\(\).mean\(\)\) > 0.*profile"):
            ts.plan(given, batch, machine=machine, mode="training")


def test_an_error_in_the_model_is_no_reason_for_hooks() -> None:
    with pytest.raises(ts.InputError, match="fails while it is traced"):
        ts.plan(nn.Linear(8, 8), (torch.zeros(2, 9),), machine=box(1 << 30), mode="training")


def test_a_comparison_says_that_its_plans_are_run_by_hooks(cli: Cli, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    script = tmp_path / "branching.py"
    script.write_text(SCRIPT)
    options = ("--mode", "training", "--tier", "dram=3MiB", "--time-limit", "1", "--workers", "0", "--strategies")
    done = cli("compare", f"{script}:make", *options, "stow,checkpoint-sqrt,resident", "--json")
    assert done.status == 0, done.err
    assert re.search(r"branching.py:\d+: if float\(x", done.json["hooked"])
    rows = {row["strategy"]: row for row in done.json["rows"]}
    assert rows["stow"]["peak_nbytes"]["dram"] <= 3 << 20
    assert sum(rows["stow"]["moved_nbytes"].values()) > 0
    assert rows["resident"]["simulated_s"] is None, "what is saved takes more than the budget"
    assert rows["checkpoint-sqrt"]["simulated_s"] is None, "hooks call nothing again"
    assert "plans by hooks, as the step cannot be traced" in cli("compare", f"{script}:make", *options, "resident").out


def test_the_command_line_says_what_it_does_and_verifies(cli: Cli, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    script = tmp_path / "branching.py"
    script.write_text(SCRIPT)
    plan = tmp_path / "plan.json"
    options = ("--mode", "training", "--tier", "dram=3MiB", "--time-limit", "2", "-o", plan, "--json")
    done = cli("plan", f"{script}:make", *options)
    assert done.status == 0, done.err
    assert re.search(r"branching.py:\d+: if float\(x", done.json["training"]["hooked"])
    assert done.json["training"]["activations"]["offloaded"]["count"] > 0
    assert "not traced" in cli("plan", f"{script}:make", *options[:-3]).out
    with pytest.warns(UserWarning, match="by hooks"):
        run = cli("run", plan, "--repeat", "1", "--verify", "--json")
    assert run.status == 0, run.err
    assert run.json["verified"]["bit_identical"]
