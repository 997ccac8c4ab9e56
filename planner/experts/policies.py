"""Caching policies by name, as the command line and the tables know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import InputError
from ...ir.sizes import format_size
from ...solvers.caching.advice import counted_bits, replay_advised, true_bits
from ...solvers.caching.counted import DECAYED, GATED, LFU, LRU, Counted, Pins, replay_counted
from ...solvers.caching.foresee import Foresee, replay_foreseen
from ...solvers.caching.offline import replay_belady, replay_segment
from ...solvers.caching.problem import NONE, Flags, Outcome, Requests
from ...solvers.caching.recall import replay_recall
from ...solvers.caching.windows import pairs_nbytes
from .trace import Trace

SEGMENT = 16
"""Tokens that the policy 'sch' looks ahead."""
MOST_PAIRS_NBYTES = 1 << 30
"""Memory that counts of pairs of experts may take: some 3,300 experts in each of 24 layers."""


@dataclass(frozen=True, slots=True)
class Case:
    """A trace, as a solver sees it, and how many of its prompts only warm up caches and profiles."""

    trace: Trace
    requests: Requests
    warm_prompts: int
    seed: int = 0

    @property
    def warm_tokens(self) -> int:
        """Tokens of the prompts that are not counted."""
        return int(self.trace.offsets[self.warm_prompts])


Replay = Callable[[Case, tuple[int, ...]], tuple[Outcome, ...]]
"""A replay at several capacities: what does not depend on them is done once."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy: `causal` if it knows nothing of the future. `needs_gates`, `needs_profile`: what a trace must offer.
    `counts_pairs` of experts of consecutive layers: those must not be too many."""

    name: str
    replay: Replay
    causal: bool
    about: str
    needs_gates: bool = False
    needs_profile: bool = False
    counts_pairs: bool = False


def _each(replay: Callable[[Case, int], Outcome]) -> Replay:
    """One capacity after the other."""
    return lambda case, capacities: tuple(replay(case, capacity) for capacity in capacities)


def _counted(policy: Counted) -> Replay:
    return _each(lambda case, capacity: replay_counted(case.requests, capacity, policy))


def _foreseen(policy: Foresee) -> Replay:
    return _each(lambda case, capacity: replay_foreseen(case.requests, capacity, policy))


def _recall(case: Case, capacities: tuple[int, ...]) -> tuple[Outcome, ...]:
    return replay_recall(case.requests, capacities)


def _advised(case: Case, capacity: int) -> Outcome:
    return replay_advised(case.requests, capacity, counted_bits(case.requests, capacity), seed=case.seed)


def _advised_truly(case: Case, capacity: int) -> Outcome:
    return replay_advised(case.requests, capacity, true_bits(case.requests, capacity), seed=case.seed)


def use_counts(trace: Trace, prompts: list[int]) -> NDArray[np.int64]:
    """How often each expert was used in some prompts: int64 [layers, experts]."""
    found = np.zeros((trace.layers, trace.experts), dtype=np.int64)
    for p in prompts:
        ids = trace.ids[trace.offsets[p] : trace.offsets[p + 1]]
        for layer in range(trace.layers):
            chosen = ids[:, layer][ids[:, layer] != NONE]
            found[layer] += np.bincount(chosen, minlength=trace.experts)
    return found


def most_used(requests: Requests, counts: NDArray[np.int64], capacity: int) -> Flags:
    """Experts to pin: the most used per byte that fit beside the largest set. bool [layers, experts]."""
    kept = np.zeros(counts.shape, dtype=np.bool_)
    least = requests.least_capacity()
    for layer in range(counts.shape[0]):
        room = capacity - int(least[layer])
        for expert in np.argsort(-counts[layer] / requests.sizes[layer], kind="stable").tolist():
            if counts[layer, expert] and requests.sizes[layer, expert] <= room:
                kept[layer, expert] = True
                room -= int(requests.sizes[layer, expert])
    return kept


def _pinned(case: Case, capacity: int) -> Outcome:
    """One profile, of the warm prompts; in force from the first prompt after them."""
    counts = use_counts(case.trace, list(range(case.warm_prompts)))
    of_round = np.full(case.trace.tokens, -1, dtype=np.int32)
    of_round[case.warm_tokens :] = 0
    return replay_counted(
        case.requests, capacity, LRU, Pins(most_used(case.requests, counts, capacity)[None], of_round)
    )


def _profiled(case: Case, capacity: int) -> Outcome:
    """A profile for each class of the warm prompts, and one of all for classes that were not among them."""
    trace = case.trace
    warm = trace.classes[: case.warm_prompts]
    kinds = list(dict.fromkeys(warm))
    groups = [list(range(case.warm_prompts)), *([p for p, kind in enumerate(warm) if kind == k] for k in kinds)]
    kept = np.stack([most_used(case.requests, use_counts(trace, group), capacity) for group in groups])
    of_round = np.full(trace.tokens, -1, dtype=np.int32)
    for p in range(case.warm_prompts, trace.prompts):
        kind = trace.classes[p]
        of_round[trace.offsets[p] : trace.offsets[p + 1]] = 1 + kinds.index(kind) if kind in kinds else 0
    return replay_counted(case.requests, capacity, LRU, Pins(kept, of_round))


_ALL = (
    Policy("lru", _counted(LRU), True, "evicts the least recently used"),
    Policy("lfu", _counted(LFU), True, "evicts the least used"),
    Policy("decayed", _counted(DECAYED), True, "evicts the least decayed use count (0.95 a token)"),
    Policy("gates", _counted(GATED), True, "evicts the least decayed sum of gates", needs_gates=True),
    Policy("pinned", _each(_pinned), True, "pins what warm prompts used most; LRU beside it", needs_profile=True),
    Policy("profiles", _each(_profiled), True, "pins what warm prompts of one class used most", needs_profile=True),
    Policy("advice", _each(_advised), True, "marking, one bit of advice from decayed counts"),
    Policy("next-layer", _foreseen(Foresee()), True, "LRU, and prefetch for the next layer", counts_pairs=True),
    Policy("recall", _recall, True, "learned: decayed counts and what followed when routing looked alike"),
    Policy("advice-true", _each(_advised_truly), False, "marking, one true bit"),
    Policy("pre-gated", _foreseen(Foresee(certain=True)), False, "LRU, and prefetch of the next layer's true set"),
    Policy(
        "sch",
        _each(lambda case, capacity: replay_segment(case.requests, capacity, SEGMENT)),
        False,
        f"keeps what is used most in the next {SEGMENT} tokens",
    ),
    Policy(
        "belady",
        _each(lambda case, capacity: replay_belady(case.requests, capacity)),
        False,
        "evicts what is used again last",
    ),
)
POLICIES = {policy.name: policy for policy in _ALL}


def chosen_policies(names: str | None, trace: Trace, warm_prompts: int) -> tuple[Policy, ...]:
    """Policies by their names, with commas between; None for all that the trace allows.

    Raises InputError for an unknown name, for gates or a profile that a policy needs and the trace does not offer, and
    for more experts than it can count pairs of.
    """
    used = trace.of_used().experts
    pairs = pairs_nbytes(trace.layers, used)
    if names is None:
        gates, profile, few = trace.gates is not None, warm_prompts > 0, pairs <= MOST_PAIRS_NBYTES
        offered = (p for p in _ALL if gates >= p.needs_gates and profile >= p.needs_profile)
        return tuple(p for p in offered if few >= p.counts_pairs)
    found: dict[str, Policy] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in POLICIES:
            raise InputError(f"no policy is called '{name}'; there are: {', '.join(POLICIES)}")
        policy = POLICIES[name]
        if policy.needs_gates and trace.gates is None:
            raise InputError(
                f"policy '{name}' ranks experts by their gates, and the trace has none; "
                "record 'gate_probs_u8' or 'gates', or leave the policy out"
            )
        if policy.needs_profile and not warm_prompts:
            raise InputError(f"policy '{name}' pins what earlier prompts used; give --warm-prompts 1 or more")
        if policy.counts_pairs and pairs > MOST_PAIRS_NBYTES:
            raise InputError(
                f"policy '{name}' counts pairs of the {used} experts that a layer is asked for, which takes "
                f"{format_size(pairs)}; the most is {format_size(MOST_PAIRS_NBYTES)}: leave the policy out"
            )
        found[name] = policy
    if not found:
        raise InputError(f"--policies {names} names no policy; there are: {', '.join(POLICIES)}")
    return tuple(found.values())
