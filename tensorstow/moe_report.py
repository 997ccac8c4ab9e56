"""What is told of plans that leave experts in the store: as planned, and as they ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ir.files import PlanFile
from .ir.program import ExpertCaching
from .ir.sizes import format_seconds, format_size
from .moe_recording import caching_of, running

if TYPE_CHECKING:
    from .runtime.module.experts_stats import ExpertStats

SURPRISE = 0.05
"""Difference of hit rates from which on it is said whose assumption did not hold."""


def experts_text(file: PlanFile) -> str | None:
    """One line about the experts of a plan; None where it caches none."""
    caching = caching_of(file)
    if caching is None:
        return None
    layers = len(caching.layers)
    count = sum(layer.experts for layer in caching.layers)
    where = f"{caching.slots} in all" if caching.shared else f"{caching.slots} a layer"
    policy = "least recent goes" if caching.decay is None else f"least used goes (decay {caching.decay:g} an event)"
    if caching.memory:
        policy = f"what followed the likest of {caching.memory:,} passes least goes, or the least recent"
    return (
        f"{count} in {layers} layers, {format_size(caching.nbytes)}, stay in the store; slots for {where}, {policy}; "
        f"hit rate {caching.hit_rate:.2f} {caching.rests_on}; computed one by one ('eager')"
    )


def reads_text(file: PlanFile) -> str | None:
    """What a pass reads of experts and how long it waits for that, as predicted; None where none are cached."""
    caching = caching_of(file)
    if caching is None:
        return None
    text = (
        f"{format_size(round(caching.read_nbytes))} a pass expected, waited for {format_seconds(caching.wait_s)} of "
        "the times below"
    )
    if caching.traced:
        return text
    return (
        f"{text}; how tokens choose is not known: where they choose as before, a pass takes "
        f"{format_seconds(_all_hit_s(file, caching))}; record what they choose (run --record-routing) and plan with "
        "--routing"
    )


def experts_facts(file: PlanFile) -> dict[str, Any] | None:
    """As `plan --json` has it; None where the plan caches none."""
    caching = caching_of(file)
    if caching is None:
        return None
    return {
        "layers": len(caching.layers),
        "experts": [layer.experts for layer in caching.layers],
        "top_k": max(layer.top_k for layer in caching.layers),
        "expert_nbytes": max(layer.nbytes for layer in caching.layers),
        "nbytes": caching.nbytes,
        "slots": caching.slots,
        "shared": caching.shared,
        "policy": caching.policy,
        "ahead": caching.ahead,
        "memory": caching.memory,
        "hit_rate": caching.hit_rate,
        "rests_on": caching.rests_on,
        "traced": caching.traced,
        "tokens": caching.tokens,
        "read_nbytes_expected": caching.read_nbytes,
        "read_s_expected": _link_s(file, caching.read_nbytes),
        "wait_s_expected": caching.wait_s,
        "all_hit_s": _all_hit_s(file, caching),
    }


def _all_hit_s(file: PlanFile, caching: ExpertCaching) -> float:
    """Seconds of a pass in which nothing is waited for; a profile's longest waits may exceed its medians."""
    return max(0.0, file.plan.certificate.simulated_s - caching.wait_s)


def _link_s(file: PlanFile, nbytes: float) -> float:
    """Seconds that the link from the store takes for so much."""
    tier, home = file.machine.units[0].tier, file.plan.home_tier
    link = next(k for k in file.machine.links if (k.origin, k.target) == (home, tier))
    return nbytes / link.bytes_per_s


def run_facts(file: PlanFile, executor: object, passes: int) -> dict[str, Any] | None:
    """What an executor's experts have done in so many passes, as `run --json` has it; None where none are cached.

    The first pass begins with empty caches, and what is predicted is one that does not: it stands apart, as
    `first_pass`, where there are others to count.
    """
    caching, experts = caching_of(file), running(executor)
    if caching is None or experts is None:
        return None
    from .runtime.module.experts_stats import since

    apart = experts.first if passes > 1 else None
    stats = experts.stats if apart is None else since(apart, experts.stats)
    counted = passes if apart is None else passes - 1
    return {
        "passes": counted,
        "first_pass": None if apart is None else _first_facts(apart),
        "hits": stats.hits,
        "misses": stats.misses,
        "hit_rate": stats.hit_rate,
        "predicted_hit_rate": caching.hit_rate,
        "rests_on": caching.rests_on,
        "traced": caching.traced,
        "ahead": stats.ahead,
        "ahead_used": stats.ahead_used,
        "read_nbytes": stats.read_nbytes,
        "predicted_read_nbytes": caching.read_nbytes,
        "link_s": _link_s(file, stats.read_nbytes / counted),
        "stalled_s": stats.stalled_ns * 1e-9,
        "decided_s": stats.decided_ns * 1e-9,
        "predicted_wait_s": caching.wait_s,
        "predicted_at_hit_rate_s": _at_rate_s(file, caching, stats.hit_rate),
    }


def _first_facts(stats: ExpertStats) -> dict[str, Any]:
    return {
        "hits": stats.hits,
        "misses": stats.misses,
        "ahead": stats.ahead,
        "read_nbytes": stats.read_nbytes,
        "stalled_s": stats.stalled_ns * 1e-9,
    }


def _at_rate_s(file: PlanFile, caching: ExpertCaching, hit_rate: float) -> float:
    """Seconds of a pass, as predicted, if so many uses are hits: what is waited for goes with the misses."""
    share = (1 - hit_rate) / (1 - caching.hit_rate) if caching.hit_rate < 1 else 1.0
    return file.plan.certificate.simulated_s - caching.wait_s * (1 - share)


def steady_nbytes(facts: dict[str, Any] | None, read_nbytes: int, passes: int) -> float:
    """Bytes that one of so many passes read, which together read `read_nbytes`; of experts what those read that
    `run_facts` counts."""
    if facts is None or facts["first_pass"] is None:
        return read_nbytes / passes
    rest, first = facts["read_nbytes"], facts["first_pass"]["read_nbytes"]
    return (read_nbytes - first - rest) / passes + rest / facts["passes"]


def run_texts(facts: dict[str, Any]) -> list[str]:
    """Lines about `run_facts`: predicted beside measured, and which assumption did not hold."""
    rate, expected, passes = facts["hit_rate"], facts["predicted_hit_rate"], facts["passes"]
    read, waited = facts["read_nbytes"] / passes, facts["stalled_s"] / passes
    lines = [
        f"experts: hit rate {rate:.2f}, predicted {expected:.2f}; {facts['misses']} read when chosen, {facts['ahead']} "
        f"ahead ({facts['ahead_used']} of them used); a pass read {format_size(round(read))}, predicted "
        f"{format_size(round(facts['predicted_read_nbytes']))}, and waited {format_seconds(waited)}, predicted "
        f"{format_seconds(facts['predicted_wait_s'])}{_about_first(facts)}"
    ]
    if abs(rate - expected) < SURPRISE:
        return lines
    if facts["first_pass"] is None:
        lines.append(
            "its caches were empty when this pass began, and what is predicted is a pass after others: measure more of "
            "them (--repeat 3)"
        )
        return lines
    wrong = (
        f"the routing was not that {facts['rests_on']}"
        if facts["traced"]
        else (
            f"the prediction holds {facts['rests_on']}, and these did not (every pass of `run` has the same inputs, "
            "whose tokens choose the same experts again)"
        )
    )
    lines.append(
        f"{wrong}; with a hit rate of {rate:.2f} the plan predicts {format_seconds(facts['predicted_at_hit_rate_s'])} "
        "a pass: record what is to be predicted (--record-routing FILE), and plan with --routing FILE"
    )
    return lines


def _about_first(facts: dict[str, Any]) -> str:
    first = facts["first_pass"]
    if first is None:
        return ""
    return (
        f"; not counted is the first pass, which began with empty caches, read {format_size(first['read_nbytes'])} and "
        f"waited {format_seconds(first['stalled_s'])}"
    )
