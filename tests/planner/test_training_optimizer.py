from __future__ import annotations

import json
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorstow.ir.check import check
from tensorstow.ir.codec import dumps, from_json, loads
from tensorstow.ir.errors import InputError
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.optimizer import BLOCK_ELEMENTS
from tensorstow.ir.program import TrainingProgram
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.planner.training import STATES, StepLowered, lower_joint, placed, with_updates
from tensorstow.planner.training.interleave import UpdateRates, on_accelerator, stride, update_s
from tensorstow.planner.training.optimizer import (
    GRANULE_NBYTES,
    SMALLEST_PIECE_NBYTES,
    optimizer_calls,
    split_updates,
    window_nbytes,
    with_update_times,
)
from tensorstow.runtime.training.joint import capture_joint


class Two(nn.Module):
    """Two layers whose weights are one parameter, and one that is not trained."""

    def __init__(self, width: int = 160, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, dtype=dtype)
        self.second = nn.Linear(width, width, dtype=dtype)
        self.second.weight = self.first.weight
        self.fixed = nn.Linear(width, width, dtype=dtype).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar loss."""
        return self.second(torch.relu(self.fixed(self.first(x)))).square().mean()


def box(dram_nbytes: int) -> Machine:
    return Machine(
        "test",
        (Tier("dram", TierKind.DRAM, dram_nbytes), Tier("ssd", TierKind.SSD, 1 << 40, alignment=4096)),
        (Link("ssd", "dram", 1e9), Link("dram", "ssd", 1e9)),
        (Unit("cpu", "dram", (("float32", 1e11),), 1e10),),
    )


def step_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> StepLowered:
    dtype = next(module.parameters()).dtype
    joint = capture_joint(module, (torch.zeros(4, 160, dtype=dtype),))
    return with_updates(lower_joint(joint, name="two"), optimizer_calls(optimizer, module))


def test_every_parameter_with_a_gradient_has_one_update() -> None:
    module = Two()
    step = step_of(torch.optim.AdamW(module.parameters(), amsgrad=True), module)
    assert step.optimizer is not None
    names = [u.names for u in step.optimizer.updates]
    assert sorted(names) == [("first.bias",), ("first.weight", "second.weight"), ("second.bias",)]
    for update in step.optimizer.updates:
        shape = step.graph.tensor[update.gradient].shape
        assert list(update.states) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        assert all(step.graph.tensor[t].shape == shape for t in update.states.values())


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_split_updates_cover_their_parameter_in_pages(kind: str) -> None:
    module = Two()
    options = {"momentum": 0.9, "lr": 0.1} if kind == "SGD" else {}
    whole = step_of(getattr(torch.optim, kind)(module.parameters(), **options), module)
    step = split_updates(whole, 40_000)
    assert step.optimizer is not None and whole.optimizer is not None
    pieces = [u for u in step.optimizer.updates if u.names[0] == "first.weight"]
    assert len(pieces) > 2
    ends = 0
    for update in pieces:
        assert update.elements is not None
        lo, hi = update.elements
        assert lo == ends and lo * 4 % GRANULE_NBYTES == 0
        ends = hi
        states = [step.graph.tensor[t] for t in update.states.values()]
        assert all(s.nbytes == (hi - lo) * 4 for s in states) and sum(s.nbytes for s in states) <= 40_000
        op = step.graph.operator[update.operator]
        assert set(update.states.values()) <= set(op.inputs) and update.gradient in op.inputs
    assert ends == 160 * 160
    together = [step.graph.operator[u.operator] for u in pieces]
    before = whole.graph.operator["update:first.weight"]
    assert abs(sum(op.flops for op in together) - before.flops) <= len(pieces)
    assert abs(sum(op.moved_nbytes for op in together) - before.moved_nbytes) <= len(pieces)
    states = {s.id: s.nbytes for s in step.graph.storages if s.kind.value == "optimizer_state"}
    assert sum(states.values()) == sum(s.nbytes for s in whole.graph.storages if s.kind.value == "optimizer_state")
    with pytest.raises(InputError, match="split already"):
        split_updates(step, 10_000)


def test_what_gives_other_bits_in_ranges_stays_whole() -> None:
    for make in (
        lambda m: torch.optim.Adafactor(m.parameters()),  # pyright: ignore[reportUnknownLambdaType]
        lambda m: torch.optim.AdamW(m.parameters(), fused=True),  # pyright: ignore[reportUnknownLambdaType]
    ):
        module = Two()
        step = step_of(make(module), module)
        assert split_updates(step, 4096) is step
    module = Two(dtype=torch.bfloat16)
    step = step_of(torch.optim.SGD(module.parameters(), momentum=0.9), module)
    assert split_updates(step, 4096) is step


def test_states_that_stream_are_planned_right_and_take_less_memory() -> None:
    module = Two()
    step = step_of(torch.optim.AdamW(module.parameters()), module)
    smallest: list[int] = []
    for lowered in (placed(step, STATES, key="k"), placed(split_updates(step, 40_000), STATES, key="k")):
        posed = make_instance(lowered.graph, box(1 << 30), mode="training")
        smallest.append(max(posed.base_nbytes) + posed.workspace_nbytes)
        machine = box(int(smallest[-1] * 1.1))
        plan = plan_graph(lowered.graph, machine, strategy="belady-prefetch", mode="training")
        assert not check(plan, lowered.graph, machine)
        assert plan.certificate.moved_nbytes["dram->ssd"] > 0
        text = loads(dumps(lowered.program), "program")
        assert from_json(TrainingProgram, text, "program") == lowered.program
    assert smallest[1] < smallest[0] - 100_000


def test_times_are_measured_once_a_form() -> None:
    module = Two()
    step = split_updates(step_of(torch.optim.AdamW(module.parameters(), weight_decay=0.5), module), 40_000)
    asked: list[tuple[str, str, int]] = []

    def measure(kind: str, options: dict[str, object], dtype: str, elements: int) -> int:
        assert options["weight_decay"] == 0.5
        asked.append((kind, dtype, elements))
        return 1000 + elements

    timed = with_update_times(step, measure)
    assert len(asked) == len(set(asked)) == 3  # vectors, pieces, and the last piece
    assert step.optimizer is not None
    for update in step.optimizer.updates:
        lo, hi = update.elements or (0, prod(step.graph.tensor[update.gradient].shape or ()))
        assert timed.graph.operator[update.operator].measured_ns == 1000 + hi - lo


def test_workspace_of_a_large_update_is_that_of_a_block() -> None:
    vector = nn.Parameter(torch.empty(8 * BLOCK_ELEMENTS, device="meta"))
    module = nn.Module()
    module.register_parameter("v", vector)
    (call,) = optimizer_calls(torch.optim.AdamW([vector]), module).calls
    assert call.cost.workspace_nbytes == 2 * BLOCK_ELEMENTS * 4
    (call,) = optimizer_calls(torch.optim.AdamW([vector], fused=False, maximize=True), module).calls
    assert call.cost.workspace_nbytes == 3 * BLOCK_ELEMENTS * 4


def test_options_are_stated_and_unknown_ones_refused() -> None:
    module = Two()
    found = optimizer_calls(torch.optim.SGD([{"params": [module.first.weight], "lr": 2.0}], lr=1.0), module)
    assert found.kind == "SGD" and json.loads(found.groups[0])["lr"] == 2.0 and found.calls[0].states == ()
    with pytest.raises(InputError, match=r"torch\.optim\.rprop\.Rprop cannot be part of a planned step"):
        optimizer_calls(torch.optim.Rprop(module.parameters()), module)

    class Own(torch.optim.AdamW):
        pass

    with pytest.raises(InputError, match="Own cannot be part"):
        optimizer_calls(Own(module.parameters()), module)
    odd = torch.optim.AdamW(module.parameters())
    odd.param_groups[0]["layer_decay"] = 0.9
    with pytest.raises(InputError, match=r"options \['layer_decay'\]"):
        optimizer_calls(odd, module)
    with pytest.raises(InputError, match="differentiable=True"):
        optimizer_calls(torch.optim.AdamW(module.parameters(), differentiable=True), module)
    with pytest.raises(InputError, match="is none of Two"):
        optimizer_calls(torch.optim.AdamW([nn.Parameter(torch.zeros(3))]), module)


def test_the_window_follows_the_budget() -> None:
    assert window_nbytes(box(1 << 20)) == SMALLEST_PIECE_NBYTES
    assert window_nbytes(box(10 << 30)) == int((10 << 30) / 50)


RATES = st.builds(
    UpdateRates,
    cpu_per_s=st.floats(1e7, 1e10),
    accelerator_per_s=st.floats(1e7, 1e12),
    link_bytes_per_s=st.floats(1e8, 1e12),
    cast_per_s=st.floats(1e8, 1e11),
    copy_nbytes=st.sampled_from([0, 2, 4]),
)


@given(RATES, st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_the_stride_is_the_best_of_all(rates: UpdateRates, subgroups: int) -> None:
    best = min([None, *range(1, subgroups + 1)], key=lambda k: update_s(rates, 1, k))
    assert update_s(rates, 1, stride(rates, subgroups=subgroups)) <= update_s(rates, 1, best) * (1 + 1e-9)


def test_the_stride_of_a_known_machine() -> None:
    """An H100 on PCIe as the paper has it: states of a parameter travel as long as the CPU updates one and a half."""
    rates = UpdateRates(cpu_per_s=2e9, accelerator_per_s=25e9, link_bytes_per_s=16e9, copy_nbytes=0)
    assert rates.fetch_s == pytest.approx(1.5 * rates.cpu_s)
    assert stride(rates, subgroups=100) == 3  # two on the CPU in 1.0 ns, one there and back in 0.75
    assert on_accelerator(rates, subgroups=10) == (2, 5, 8)
    assert update_s(rates, 9, 3) == pytest.approx(9 * 2 / 3 * rates.cpu_s)
    slow_link = UpdateRates(cpu_per_s=2e9, accelerator_per_s=25e9, link_bytes_per_s=1e8)
    assert stride(slow_link, subgroups=8) is None and on_accelerator(slow_link, subgroups=8) == ()
    with pytest.raises(InputError, match="above zero"):
        UpdateRates(0.0, 1.0, 1.0)
