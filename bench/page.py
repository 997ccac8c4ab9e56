"""The page of a plan of 5,000 operators: its size, and the time until a browser has drawn it.

Needs Chromium on the path and playwright (`pip install --group docs`). The clock is the browser's own: from the start
of the navigation until the figures of the first screen are on it and answer (`drawn`), and until all of the page's are
(`complete`). Both views are measured, each three times, in windows of their own. `cpu` is what the page's main thread
computes in all: on a busy box it says more than the clock.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tensorstow.ir.files import PlanFile, write_plan
from tensorstow.ir.sizes import format_size
from tensorstow.planner.build import plan_graph

from .common import model_folder, table
from .scale_graphs import KINDS, machine_for

OPERATORS = 5000
BUDGET = 0.4
"""Of the weights' bytes."""
TIMES = 3
VIEWS = {"desktop": (1400, 900), "phone": (390, 844)}
MOST_S, MOST_NBYTES = 2.0, 5_000_000


def main() -> dict[str, Any]:
    """Plan, write the pages, open them; a table and its figures."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None or find_spec("playwright") is None:
        return {"skipped": "how long a page takes needs Chromium on the path, and playwright (`make docs` installs it)"}
    rows: list[list[str]] = []
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("inference", "training"):
            path = _page(kind, Path(folder))
            for view, size in VIEWS.items():
                drawn = [_opened(browser, path, size) for _ in range(TIMES)]
                seconds = statistics.median(d["drawn_ms"] for d in drawn) / 1e3
                complete = statistics.median(d["complete_ms"] for d in drawn) / 1e3
                cpu = statistics.median(d["cpu_ms"] for d in drawn) / 1e3
                nbytes = path.stat().st_size
                fine = seconds < MOST_S and nbytes < MOST_NBYTES
                times = {"drawn_s": seconds, "complete_s": complete, "cpu_s": cpu}
                found.append({"graph": kind, "view": view, "nbytes": nbytes, **times})
                spans = [f"{s:.2f} s" for s in times.values()]
                rows.append([kind, view, format_size(nbytes), *spans, "yes" if fine else "NO"])
    limits = f"below {MOST_S:.0f} s and {format_size(MOST_NBYTES)}"
    table(f"the page of {OPERATORS:,} operators", ("graph", "view", "size", "drawn", "complete", "cpu", limits), rows)
    return {"operators": OPERATORS, "rows": found}


def _page(kind: str, folder: Path) -> Path:
    """The page of a plan, which is made once and kept."""
    from tensorstow.ir.files import read_plan
    from tensorstow.page.page import write_page

    plan = model_folder() / f"{kind}-{OPERATORS}.plan.json"
    if not plan.exists():
        graph = KINDS[kind](OPERATORS)
        homed = sum(s.nbytes for s in graph.storages if s.homed)
        machine = machine_for(graph, int(BUDGET * homed))
        write_plan(PlanFile(plan_graph(graph, machine, time_limit_s=30), graph, machine, None, None, 0), plan)
    page = folder / f"{kind}.html"
    write_page(read_plan(plan), page, time_limit_s=5, progress=lambda _what, _share: None)
    return page


def _opened(browser: str, path: Path, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds until the first screen of the page is drawn, and until all is; and those of its main thread."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            tab = chromium.new_page(viewport={"width": size[0], "height": size[1]})
            meter = tab.context.new_cdp_session(tab)
            meter.send("Performance.enable", {"timeDomain": "threadTicks"})
            tab.goto(path.as_uri())
            tab.wait_for_function("document.body.dataset.complete !== undefined", timeout=120_000)
            taken = {m["name"]: m["value"] for m in meter.send("Performance.getMetrics")["metrics"]}
            stamps = {
                f"{what}_ms": float(tab.evaluate(f"document.body.dataset.{what}")) for what in ("drawn", "complete")
            }
            return {**stamps, "cpu_ms": 1e3 * float(taken["TaskDuration"])}
        finally:
            chromium.close()
