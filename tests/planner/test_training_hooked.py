"""What a profile of saved tensors is planned as: what stays, what leaves, and what no memory is enough for."""

from __future__ import annotations

import pytest

from tensorstow.ir.errors import InfeasibleError
from tensorstow.ir.saved import SavedPlan, SavedProfile, SavedTensor
from tensorstow.planner.build import plan_graph
from tensorstow.planner.training.hooked import lower_profile
from tensorstow.runtime.training.hooked import saved_plan
from tests.runtime.training_steps import box

PAGE = 4096


def step(pages: list[int], *, each_s: float = 1.0) -> SavedProfile:
    """A forward pass that saves one after another, and a backward pass that takes twice as long."""
    n = len(pages)
    turn = n * each_s
    tensors = (
        SavedTensor(PAGE * size, i * each_s, turn + 2 * (n - 1 - i) * each_s, turn + 2 * (n - i) * each_s)
        for i, size in enumerate(pages)
    )
    return SavedProfile(tuple(tensors), 3 * turn, turn)


def planned(profile: SavedProfile, pages: int, bytes_per_s: float = 1e9) -> SavedPlan:
    lowered = lower_profile(profile, name="profiled", why="", kept_nbytes=0, updates=False)
    assert lowered.program.hooked is not None
    plan = plan_graph(lowered.graph, box(pages * PAGE, bytes_per_s), strategy="stow", mode="training", time_limit_s=2.0)
    return saved_plan(plan, lowered.graph, lowered.program.hooked, "dram")


def test_what_fits_stays() -> None:
    plan = planned(step([1, 2, 3]), 6)
    assert plan.choices == ("keep",) * 3
    assert (plan.peak_nbytes, plan.offloaded_nbytes) == (6 * PAGE, 0)


def test_a_fast_disk_takes_the_first_and_no_more_than_it_must() -> None:
    plan = planned(step([1] * 10), 6)
    assert plan.peak_nbytes <= 6 * PAGE
    assert plan.choices[0] == "offload" and plan.choices[-1] == "keep"
    assert 4 * PAGE <= plan.offloaded_nbytes < 10 * PAGE


def test_what_is_held_elsewhere_neither_counts_nor_leaves() -> None:
    held = SavedTensor(1000 * PAGE, 0.0, 5.0, 6.0, held=True)
    plan = planned(SavedProfile((held, *step([1, 1, 1]).tensors), 9.0, 3.0), 2)
    assert plan.choices == ("held", "offload", "keep", "keep")
    assert plan.peak_nbytes <= 2 * PAGE


def test_less_than_is_read_at_once_is_infeasible() -> None:
    both = SavedProfile((SavedTensor(PAGE, 0, 4, 6), SavedTensor(2 * PAGE, 1, 3, 5)), 6.0, 2.0)
    with pytest.raises(InfeasibleError) as raised:
        planned(both, 2)
    assert raised.value.smallest_nbytes == 3 * PAGE
    assert planned(both, 3).choices == ("keep", "keep")
