"""The picture of the house, read from its sources: which folder imports which, and in how many files."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tensorstow.page.scales import COLORS

if TYPE_CHECKING:
    pass


ROOT = Path(__file__).resolve().parent.parent
WIDTH = 7.2
PLACES = {
    "tensorstow": (0.5, 0.86),
    "planner": (0.28, 0.5),
    "runtime": (0.8, 0.5),
    "solvers": (0.17, 0.12),
    "ir": (0.6, 0.12),
}
WHAT = {
    "tensorstow": "command line, API, reports",
    "planner": "models to graphs, strategies",
    "runtime": "executes plans",
    "solvers": "integers in, answer and bound out",
    "ir": "graph, machine, plan; checker, simulator",
}  # fmt: skip
"""What stands in the boxes; which arrows there are is read from the sources."""


@cache
def imports() -> Counter[tuple[str, str]]:
    """(importing folder, imported folder) of ours, and how many files of the first do it."""
    found: Counter[tuple[str, str]] = Counter()
    for folder in PLACES:
        for path in (ROOT / folder).rglob("*.py"):
            if not any(part.is_symlink() for part in path.parents):
                found.update((folder, other) for other in _imported(path, folder) - {folder})
    return found


def _imported(path: Path, folder: str) -> set[str]:
    inside = path.relative_to(ROOT).parent.parts
    package = ("tensorstow", *(inside[1:] if folder == "tensorstow" else inside))
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    parts = [name.split(".") for name in names if name.startswith("tensorstow.")]
    return {p[1] if p[1] in PLACES else "tensorstow" for p in parts}


def layers() -> Figure:
    """The five folders and every import between them, with the number of files that import so."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    for (origin, target), files in imports().items():
        (x0, y0), (x1, y1) = PLACES[origin], PLACES[target]
        bend = 0.32 if (origin, target) == ("tensorstow", "solvers") else -0.12 if origin == "tensorstow" else 0.0
        arrow = FancyArrowPatch(
            (x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=12, shrinkA=26, shrinkB=30, lw=0.8 + files / 60,
            color=COLORS["computes"], connectionstyle=f"arc3,rad={bend}", alpha=0.75,
        )  # fmt: skip
        ax.add_patch(arrow)
        dx, dy = x1 - x0, y1 - y0
        plate = {"boxstyle": "round,pad=0.15", "fc": mpl.rcParams["figure.facecolor"], "ec": "none"}
        middle = (x0 + x1) / 2 + bend / 2 * dy, (y0 + y1) / 2 - bend / 2 * dx
        ax.text(*middle, str(files), ha="center", va="center", fontsize=8, bbox=plate)
    for name, (x, y) in PLACES.items():
        box = FancyBboxPatch((x - 0.15, y - 0.065), 0.3, 0.13, boxstyle="round,pad=0.01,rounding_size=0.02",
                             fc=mpl.rcParams["axes.facecolor"], ec=COLORS["computes"], lw=1.2, zorder=3)  # fmt: skip
        ax.add_patch(box)
        ax.text(x, y + 0.022, name, ha="center", va="center", fontsize=11, weight="bold", zorder=4)
        ax.text(x, y - 0.032, WHAT[name], ha="center", va="center", fontsize=7, zorder=4)
    return figure
