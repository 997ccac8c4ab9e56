"""Rows of the gap table: as a table, and in sum."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..common import MIB, table

Row = dict[str, Any]
"""A case under a budget: its 'graph', 'mode', 'machine', 'budget' and 'strategy', and either a 'ratio' (simulated over
bound) with what belongs to it, or a 'status' with the 'reason' why there is no plan."""


def summarise(rows: Sequence[Row], strategy: str) -> dict[str, Any]:
    """Over the rows of one strategy that have a plan: how near the bounds, and how much faster than the baselines."""
    planned = [r for r in rows if r["strategy"] == strategy and "ratio" in r]
    without = sum("ratio" not in r and r["strategy"] in ("", strategy) for r in rows)
    if not planned:
        return {"cases": 0, "without_plan": without}
    ratios = [r["ratio"] for r in planned]
    faster = [r["speedup"] for r in planned if "speedup" in r]
    worst = max(planned, key=lambda r: r["ratio"])
    return {
        "cases": len(planned),
        "without_plan": without,
        "within_1.01": sum(x <= 1.01 for x in ratios) / len(ratios),
        "within_1.03": sum(x <= 1.03 for x in ratios) / len(ratios),
        "proven": sum(r["proven"] for r in planned) / len(planned),
        "median": statistics.median(ratios),
        "worst": worst["ratio"],
        "worst_case": " ".join(worst[k] for k in ("graph", "machine", "budget")),
        "speedup": statistics.geometric_mean(faster) if faster else None,
        "only_plan": sum(r.get("best_baseline") is None for r in planned),
    }


COLUMNS = (
    "graph",
    "machine",
    "budget",
    "MiB",
    "ops",
    "strategy",
    "bound",
    "simulated",
    "sim/bound",
    "proven",
    "seconds",
    "bound kind",
    "best baseline",
    "speed-up",
)


def cells(r: Row) -> list[str]:
    """A row as the table prints it; cut short where there is no plan."""
    head = [r["graph"], r["machine"], r["budget"], f"{r['nbytes'] / MIB:.1f}" if "nbytes" in r else ""]
    head += [str(r.get("ops", "")), r["strategy"]]
    if "ratio" not in r:
        return [*head, f"{r['status']}: {r['reason'][:60]}"]
    return [
        *head,
        f"{1e3 * r['bound_s']:.3f} ms",
        f"{1e3 * r['simulated_s']:.3f} ms",
        f"{r['ratio']:.4f}",
        "yes" if r["proven"] else "",
        f"{r['solve_s']:.1f}",
        r["bound_kind"].partition(":")[0],
        r.get("best_baseline") or "none",
        f"{r['speedup']:.2f}" if "speedup" in r else "",
    ]


def print_table(rows: Sequence[Row], summary: dict[str, dict[str, Any]]) -> None:
    """The rows with a plan, then the reasons of those without, then a sentence for each strategy."""
    width = len(COLUMNS)
    planned = [cells(r) for r in rows if "ratio" in r]
    table(
        "simulated over the bound, and over the best baseline", COLUMNS, [c + [""] * (width - len(c)) for c in planned]
    )
    for r in (r for r in rows if "ratio" not in r):
        print("no plan:", " ".join(filter(None, (r["graph"], r["machine"], r["budget"], r["strategy"]))), end=": ")
        print(f"{r['status']}: {r['reason']}")
    for name, s in summary.items():
        if not s["cases"]:
            print(f"{name}: no plan in {s['without_plan']} cases")
            continue
        print(
            f"{name}: {s['cases']} cases ({s['without_plan']} without a plan); within 1.01: {s['within_1.01']:.0%}, "
            f"within 1.03: {s['within_1.03']:.0%}, proven: {s['proven']:.0%}; median {s['median']:.4f}, worst "
            f"{s['worst']:.4f} ({s['worst_case']})"
            + (f"; {s['speedup']:.2f} x as fast as the best baseline (geometric mean)" if s["speedup"] else "")
        )
