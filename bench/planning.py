"""Seconds to plan, and simulated over the bound, for every light network and the GPT, without a profile."""

from __future__ import annotations

import statistics
from typing import Any

from tests.models import light_models

from .common import MIB, command, network, resident_nbytes, smallest_nbytes, table

SHARES = (0.8, 0.6, 0.4)


def main() -> dict[str, Any]:
    """A row for each network and budget."""
    rows: list[dict[str, Any]] = []
    for name in (*sorted(light_models()), "gpt"):
        path = network(name)
        whole, smallest = resident_nbytes(path), smallest_nbytes(path)
        cases = {f"{s:.0%}": max(int(s * whole), smallest) for s in SHARES} | {"smallest": smallest}
        for budget, nbytes in cases.items():
            planned = command("plan", str(path), "--tier", f"dram={nbytes}")
            rows.append({"network": name, "budget": budget, "nbytes": nbytes, **planned})
    table(
        "planning: seconds, and simulated over the bound",
        ("network", "budget", "MiB", "operators", "seconds", "simulated", "bound", "sim/bound"),
        [
            [
                r["network"],
                r["budget"],
                f"{r['nbytes'] / MIB:.1f}",
                *([str(r["error"])[:60]] + [""] * 4 if "error" in r else _cells(r)),
            ]
            for r in rows
        ],
    )
    good = [r for r in rows if "error" not in r]
    gaps = sorted(1 + r["gap"] for r in good)
    medians = {
        "sim_over_bound": statistics.median(gaps),
        "worst": gaps[-1],
        "seconds": statistics.median(r["solve_s"] for r in good),
    }
    print(f"median simulated/bound {medians['sim_over_bound']:.4f}, worst {medians['worst']:.4f}")
    return {"rows": rows, "medians": medians}


def _cells(r: dict[str, Any]) -> list[str]:
    return [
        str(r["graph"]["ops"]),
        f"{r['solve_s']:.2f}",
        f"{1e3 * r['simulated_s']:.2f} ms",
        f"{1e3 * r['bound_s']:.2f} ms",
        f"{1 + r['gap']:.4f}",
    ]
