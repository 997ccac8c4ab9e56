"""Measured against predicted and against the limit, at budgets from 80% of what a network takes to the smallest.

For each network and budget: plan with measured operators, run in a fresh process, and compare the median pass with the
slower of computing alone and transfers alone (measured in that same process), with the prediction, and the kernel's
peak of the process with the promised one.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .common import MIB, command, model_folder, network, resident_nbytes, smallest_nbytes, table

NETWORKS = ("vgg19", "resnet50", "densenet121", "gpt")
SHARES = (0.8, 0.6, 0.4)


def budgets(path: Path) -> dict[str, int]:
    """Budgets in bytes by name."""
    whole = resident_nbytes(path)
    return {f"{share:.0%}": int(whole * share) for share in SHARES} | {"smallest": smallest_nbytes(path)}


def case(name: str, budget: str, nbytes: int) -> dict[str, Any]:
    """One row: plan, run, ratios."""
    path = network(name)
    plan_path = model_folder() / f"{name}.{budget.rstrip('%')}.plan.json"
    planned = command("plan", str(path), "--tier", f"dram={nbytes}", "--profile", "-o", str(plan_path))
    row: dict[str, Any] = {"network": name, "budget": budget, "nbytes": nbytes, "plan": planned}
    if "error" in planned:
        return row
    ran = command("run", str(plan_path), "--repeat", "7")
    row["run"] = ran
    if "error" in ran:
        return row
    row |= {
        "over_limit": ran["over_limit"],
        "over_predicted": ran["median_s"] / ran["predicted_s"],
        "over_bound": planned["simulated_s"] / planned["bound_s"],
        "peak_over_promised": ran["peak_rss_nbytes"] / ran["promised_peak_nbytes"],
        "beyond_fixed_over_arena": (ran["peak_rss_nbytes"] - ran["fixed_nbytes"])
        / sum(n for tier, n in ran["predicted_peak_nbytes"].items() if tier == "dram"),
    }
    return row


def main(networks: tuple[str, ...] = NETWORKS) -> dict[str, Any]:
    """All cases, their table, and the medians."""
    rows = [case(name, budget, n) for name in networks for budget, n in budgets(network(name)).items()]
    good = [r for r in rows if "over_limit" in r]
    table(
        "execution: measured pass over the limit, the prediction; simulated over the bound; process peak over promised",
        (
            "network",
            "budget",
            "MiB",
            "planned",
            "pass",
            "limit",
            "/limit",
            "/predicted",
            "sim/bound",
            "peak",
            "peak-fixed",
        ),
        [_cells(r) for r in rows],
    )
    keys = ("over_limit", "over_predicted", "over_bound", "peak_over_promised", "beyond_fixed_over_arena")
    medians = {key: statistics.median(r[key] for r in good) for key in keys}
    return {"rows": rows, "medians": medians}


def _cells(r: dict[str, Any]) -> list[str]:
    head = [r["network"], r["budget"], f"{r['nbytes'] / MIB:.0f}"]
    if "over_limit" not in r:
        return [*head, str(r.get("run", r["plan"]).get("error"))[:80], *[""] * 7]
    ran = r["run"]
    return [
        *head,
        f"{r['plan']['solve_s']:.1f} s",
        f"{1e3 * ran['median_s']:.1f} ms",
        f"{1e3 * max(ran['limit_s'].values()):.1f} ms",
        f"{r['over_limit']:.3f}",
        f"{r['over_predicted']:.3f}",
        f"{r['over_bound']:.4f}",
        f"{r['peak_over_promised']:.3f}",
        f"{r['beyond_fixed_over_arena']:.3f}",
    ]
