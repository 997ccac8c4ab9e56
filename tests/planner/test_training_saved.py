"""Which saved tensors leave memory: against every choice there is, and against the bound."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.errors import InfeasibleError, InputError
from tensorstow.ir.saved import SavedPlan, SavedProfile, SavedTensor
from tensorstow.planner.training.saved import (
    Outcome,
    _events,  # pyright: ignore[reportPrivateUsage]
    plan_saved,
    required_nbytes,
    simulate,
    stall_bound_s,
)


def step(sizes: list[int], *, each_s: float = 1.0) -> SavedProfile:
    """A forward pass that saves one after another, and a backward pass that takes twice as long."""
    n = len(sizes)
    turn = n * each_s
    return SavedProfile(
        tuple(
            SavedTensor(nbytes, i * each_s, turn + 2 * (n - 1 - i) * each_s, turn + 2 * (n - i) * each_s)
            for i, nbytes in enumerate(sizes)
        ),
        3 * turn,
    )


def outcome(profile: SavedProfile, chosen: frozenset[int], capacity: int, write: float, read: float) -> Outcome | None:
    return simulate(profile.tensors, _events(profile.tensors), chosen, capacity, write, read)


def best_of_all(profile: SavedProfile, capacity: int, write: float, read: float) -> float | None:
    n = len(profile.tensors)
    found = [
        result.stall_s
        for count in range(n + 1)
        for chosen in combinations(range(n), count)
        if (result := outcome(profile, frozenset(chosen), capacity, write, read)) is not None
    ]
    return min(found, default=None)


def test_what_fits_stays() -> None:
    plan = plan_saved(step([10, 20, 30]), 60, write_bytes_per_s=1, read_bytes_per_s=1)
    assert plan == SavedPlan(60, (10, 20, 30), ("keep",) * 3, 0.0, 0.0, 60, 0)


def test_a_fast_disk_costs_nothing_and_takes_the_first() -> None:
    plan = plan_saved(step([10] * 10), 60, write_bytes_per_s=100, read_bytes_per_s=100)
    assert plan.stall_s == plan.bound_s == 0
    assert plan.peak_nbytes <= 60
    assert plan.choices[0] == "offload"
    assert plan.choices[-1] == "keep"
    assert 40 <= plan.offloaded_nbytes < 100


def test_a_slow_disk_is_waited_for_as_long_as_anyone_must() -> None:
    """40 bytes must leave within the first 9 s at 2 bytes/s, and come back within 19 s at 1 byte/s."""
    profile = step([10] * 10)
    assert stall_bound_s(profile.tensors, 60, 2, 1) == (20 - 9) + (40 - 19)
    plan = plan_saved(profile, 60, write_bytes_per_s=2, read_bytes_per_s=1)
    assert plan.bound_s == 32
    assert plan.bound_s <= plan.stall_s <= 1.3 * plan.bound_s


def test_what_is_held_elsewhere_neither_counts_nor_leaves() -> None:
    held = SavedTensor(1000, 0.0, 5.0, 6.0, held=True)
    profile = SavedProfile((held, *step([10, 10]).tensors), 6.0)
    plan = plan_saved(profile, 10, write_bytes_per_s=100, read_bytes_per_s=100)
    assert plan.choices == ("held", "offload", "keep")
    assert plan.peak_nbytes <= 10


def test_less_than_is_read_at_once_is_infeasible() -> None:
    both = SavedProfile((SavedTensor(10, 0, 4, 6), SavedTensor(20, 1, 3, 5)), 6)
    assert required_nbytes(both.tensors) == 30
    with pytest.raises(InfeasibleError, match=r"needs 30 bytes.*capacity for them is 29") as raised:
        plan_saved(both, 29, write_bytes_per_s=1, read_bytes_per_s=1)
    assert raised.value.smallest_nbytes == 30
    assert plan_saved(both, 30, write_bytes_per_s=1, read_bytes_per_s=1).stall_s == 0


def test_rates_must_be_positive() -> None:
    with pytest.raises(InputError, match="rates of 0"):
        plan_saved(step([1]), 1, write_bytes_per_s=0, read_bytes_per_s=1)


@pytest.mark.parametrize("tensor", [SavedTensor(-1, 0, 1, 2), SavedTensor(1, 1, 0, 2), SavedTensor(1, 0, 2, 1)])
def test_times_must_be_in_order(tensor: SavedTensor) -> None:
    with pytest.raises(InputError, match="saved tensor 0"):
        plan_saved(SavedProfile((tensor,), 3.0), 10, write_bytes_per_s=1, read_bytes_per_s=1)


def test_a_tensor_that_is_still_being_stored_is_forwarded() -> None:
    """The store of the last takes 100 s; it is read 1 s after it was saved."""
    profile = step([1, 100])
    assert outcome(profile, frozenset({1}), 101, 1, 1) == Outcome(0.0, 101, 100)


def test_the_empty_step() -> None:
    assert plan_saved(SavedProfile((), 1.0), 0, write_bytes_per_s=1, read_bytes_per_s=1).choices == ()


RATES = st.sampled_from([0.5, 1.0, 3.0, 10.0, 100.0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=7),
    st.floats(0.2, 1.0),
    RATES,
    RATES,
)
def test_no_choice_beats_the_bound_and_of_few_tensors_ours_is_the_best(
    drawn: list[tuple[int, float, float, float]], share: float, write: float, read: float
) -> None:
    """Any lives: nested or not, also tensors that are needed while others are still being saved."""
    tensors = tuple(
        SavedTensor(nbytes, 10 * a, 10 * a + 10 * b, 10 * a + 10 * b + 5 * c)
        for nbytes, a, b, c in sorted(drawn, key=lambda d: d[1])
    )
    profile = SavedProfile(tensors, 30.0)
    capacity = max(required_nbytes(tensors), int(share * sum(t.nbytes for t in tensors)))
    best = best_of_all(profile, capacity, write, read)
    bound = stall_bound_s(tensors, capacity, write, read)
    assert best is not None
    plan = plan_saved(profile, capacity, write_bytes_per_s=write, read_bytes_per_s=read)
    assert bound <= best + 1e-9
    assert plan.peak_nbytes <= capacity
    assert plan.stall_s == best


@pytest.mark.parametrize("seed", range(6))
def test_of_more_tensors_the_search_comes_near_the_best(seed: int) -> None:
    """10 tensors have 1,024 choices, of which the search tries a third: it stays within a tenth of the whole step."""
    random = Random(seed)
    profile = step([random.randint(1, 40) for _ in range(10)])
    capacity = max(required_nbytes(profile.tensors), int(random.uniform(0.3, 0.8) * sum_nbytes(profile)))
    write, read = random.choice([1, 3, 10, 30]), random.choice([1, 3, 10, 30])
    best = best_of_all(profile, capacity, write, read)
    plan = plan_saved(profile, capacity, write_bytes_per_s=write, read_bytes_per_s=read)
    assert best is not None
    assert plan.bound_s - 1e-9 <= best <= plan.stall_s + 1e-9
    assert plan.stall_s + profile.seconds <= 1.1 * (best + profile.seconds)


def sum_nbytes(profile: SavedProfile) -> int:
    return sum(t.nbytes for t in profile.tensors)


def test_more_memory_never_waits_longer_on_a_deep_step() -> None:
    profile = step([7 + i % 5 for i in range(60)])
    stalls = [
        plan_saved(profile, capacity, write_bytes_per_s=6, read_bytes_per_s=5).stall_s
        for capacity in (60, 120, 240, 480, 560)
    ]
    assert stalls == sorted(stalls, reverse=True)
    assert stalls[-1] == 0
