"""What is told of plans that leave experts in the store: as planned, and as they ran."""

from __future__ import annotations

from typing import Any

from .ir.files import PlanFile
from .ir.program import ExpertCaching
from .ir.sizes import format_seconds, format_size
from .moe_recording import caching_of, running

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
    simulated_s = file.plan.certificate.simulated_s
    if not caching.wait_ns:
        return f"{format_size(round(caching.read_nbytes))} a pass expected; waits for them are in the times measured"
    text = (
        f"{format_size(round(caching.read_nbytes))} a pass expected, waited for {format_seconds(caching.wait_s)} of "
        "the times below"
    )
    if caching.traced:
        return text
    return (
        f"{text}; how tokens choose is not known: where they choose as before, a pass takes "
        f"{format_seconds(simulated_s - caching.wait_s)}; record what they choose (run --record-routing) and plan with "
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
        "read_s_expected": _link_s(file, caching),
        "wait_s_expected": caching.wait_s,
        "all_hit_s": file.plan.certificate.simulated_s - caching.wait_s,
    }


def _link_s(file: PlanFile, caching: ExpertCaching) -> float:
    """Seconds that the link from the store takes for what a pass is expected to read."""
    tier, home = file.machine.units[0].tier, file.plan.home_tier
    link = next(k for k in file.machine.links if (k.origin, k.target) == (home, tier))
    return caching.read_nbytes / link.bytes_per_s


def run_facts(file: PlanFile, executor: object) -> dict[str, Any] | None:
    """What an executor's experts have done so far, as `run --json` has it; None where none are cached."""
    caching, experts = caching_of(file), running(executor)
    if caching is None or experts is None:
        return None
    stats = experts.stats
    return {
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
        "stalled_s": stats.stalled_ns * 1e-9,
        "decided_s": stats.decided_ns * 1e-9,
        "predicted_wait_s": caching.wait_s,
        "predicted_at_hit_rate_s": _at_rate_s(file, caching, stats.hit_rate),
    }


def _at_rate_s(file: PlanFile, caching: ExpertCaching, hit_rate: float) -> float:
    """Seconds of a pass, as predicted, if so many uses are hits: what is waited for goes with the misses."""
    share = (1 - hit_rate) / (1 - caching.hit_rate) if caching.hit_rate < 1 else 1.0
    return file.plan.certificate.simulated_s - caching.wait_s * (1 - share)


def run_texts(facts: dict[str, Any], passes: int) -> list[str]:
    """Lines about `run_facts` of so many passes: predicted beside measured, and which assumption did not hold."""
    rate, expected = facts["hit_rate"], facts["predicted_hit_rate"]
    read, waited = facts["read_nbytes"] / passes, facts["stalled_s"] / passes
    lines = [
        f"experts: hit rate {rate:.2f}, predicted {expected:.2f}; {facts['misses']} read when chosen, {facts['ahead']} "
        f"ahead ({facts['ahead_used']} of them used); a pass read {format_size(round(read))}, predicted "
        f"{format_size(round(facts['predicted_read_nbytes']))}, and waited {format_seconds(waited)}, predicted "
        f"{format_seconds(facts['predicted_wait_s'])}"
    ]
    if abs(rate - expected) < SURPRISE:
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
