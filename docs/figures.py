"""The figures of these pages, drawn by the planner itself each time the pages are built: nothing here is a sketch.

Each drawing function returns a matplotlib figure; `FIGURES` names them. All together take some seconds.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.scale_graphs import branching, inference, machine_for
from tensorstow.experts import Analysis, analyse
from tensorstow.ir.files import PlanFile
from tensorstow.ir.graph import Graph
from tensorstow.page.boxes import KINDS, draw
from tensorstow.page.experts_page import charts, experts_picture
from tensorstow.page.scales import COLORS
from tensorstow.planner.build import plan_graph
from tensorstow.planner.compare import compare
from tensorstow.planner.instance import make_instance
from tensorstow.solvers.packing import Body, Box, PackingProblem, pack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from .figure_layers import WIDTH, layers

MIB = 1 << 20


@cache
def _small() -> tuple[Graph, PlanFile]:
    """Some layers of a transformer inside 45% of what their weights take."""
    graph = inference(60)
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    machine = machine_for(graph, homed * 45 // 100, moved_share=0.5)
    return graph, PlanFile(plan_graph(graph, machine, time_limit_s=4), graph, machine, None, None, 0)


def stays() -> Figure:
    """A plan: addresses over time, and the bytes held beneath the capacity."""
    _, file = _small()
    drawing = draw(file)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 1]})
    for box in drawing.memory["hbm"]:
        top.add_patch(
            Rectangle((box.start_ns / 1e6, box.low / MIB), (box.end_ns - box.start_ns) / 1e6,
                      (box.high - box.low) / MIB, fc=COLORS[box.kind], ec=mpl.rcParams["axes.facecolor"], lw=0.3)
        )  # fmt: skip
    for kind in KINDS:
        if any(b.kind == kind for b in drawing.memory["hbm"]):
            top.plot([], [], "s", color=COLORS[kind], label=kind)
    top.set_ylim(0, file.plan.capacity_nbytes["hbm"] / MIB)
    top.set_ylabel("addresses, MiB")
    _legend(top)
    at, held = zip(*drawing.held["hbm"], strict=True)
    bottom.step([t / 1e6 for t in at], [n / MIB for n in held], where="post", color=COLORS["computes"])
    bottom.axhline(file.plan.capacity_nbytes["hbm"] / MIB, color=COLORS["waits"], ls="--", lw=1)
    bottom.set(
        ylabel="held, MiB", xlabel="time in the pass, ms", ylim=(0, None), xlim=(0, drawing.timeline.pass_ns / 1e6)
    )
    return figure


def fractions() -> Figure:
    """What the linear program drops in each gap, and what the plan made of it."""
    graph, file = _small()
    instance = make_instance(graph, file.machine)
    solution = instance.relax(instance.capacity_nbytes, time_limit_s=10).solution
    assert solution is not None
    moved: Counter[str] = Counter()
    for t in file.plan.transfers:
        if t.target == "hbm":
            moved[t.storage] += t.nbytes
    weights = [
        (g.start, graph.storage[name].nbytes, absent, moved[name])
        for g, absent in zip(instance.solver_gaps, solution.absent, strict=True)
        if (name := instance.items[g.item].storage)
        and graph.storage[name].homed
        and graph.storage[name].nbytes > MIB // 2
    ]
    weights.sort()
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    top = figure.subplots()
    place = np.arange(len(weights))
    top.bar(
        place - 0.2, [n * e / MIB for _, n, e, _ in weights], 0.4, color=COLORS["activation"], label="the program drops"
    )
    top.bar(place + 0.2, [m / MIB for *_, m in weights], 0.4, color=COLORS["loads"], label="the plan loads")
    top.plot(place, [n / MIB for _, n, *_ in weights], "_", ms=9, color=mpl.rcParams["text.color"], label="size")
    top.set(ylabel="MiB a pass", xlabel="large weights, in the order of use", xticks=[])
    _legend(top)
    return figure


@cache
def _by_budget() -> dict[str, list[tuple[float, float]]]:
    """(budget in percent of the weights, milliseconds) of the bound and of some strategies."""
    graph = branching(90)
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    names = ("stow", "belady-prefetch", "lru")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bound", *names)}
    machine = machine_for(graph, homed, moved_share=0.5)
    for share in (20, 30, 45, 60, 75, 90):
        box = machine.with_capacity({"hbm": homed * share // 100})
        result = compare(graph, box, names, time_limit_s=2)
        found["bound"].append((share, result.bound.seconds * 1e3))
        for row in result.rows:
            if row.plan is not None:
                found[row.strategy].append((share, row.plan.certificate.simulated_s * 1e3))
    return found


def budgets() -> Figure:
    """A pass under each budget: the proven bound, and what some strategies reach."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    ax = figure.subplots()
    colors = {
        "bound": COLORS["waits"],
        "stow": COLORS["computes"],
        "belady-prefetch": COLORS["activation"],
        "lru": COLORS["loads"],
    }
    for name, points in _by_budget().items():
        style = "--" if name == "bound" else "o-"
        ax.plot(*zip(*points, strict=True), style, color=colors[name], label=name, lw=1.5, ms=4)
    ax.set(xlabel="budget, % of the weights", ylabel="a pass, ms", ylim=(0, None))
    _legend(ax)
    return figure


def packing() -> Figure:
    """The same buffers by first fit, the largest first, and by search; the dashed line is the load bound."""
    rng = np.random.default_rng(5)
    starts = rng.integers(0, 24, 34)
    problem = PackingProblem(
        tuple(
            Body((Box(int(s), int(s + d), 0, int(n)),))
            for s, d, n in zip(starts, rng.integers(2, 10, 34), rng.integers(1, 9, 34), strict=True)
        )
    )
    best = pack(problem, time_limit_s=5, workers=1)
    assert best.solution is not None
    assert best.bound is not None
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    for ax, title, offsets in zip(
        sides, ("first fit, largest first", "search"), (_first_fit(problem), best.solution.offsets), strict=True
    ):
        peak = max(o + b.boxes[0].hi for o, b in zip(offsets, problem.bodies, strict=True))
        for i, (offset, body) in enumerate(zip(offsets, problem.bodies, strict=True)):
            box = body.boxes[0]
            color = list(COLORS.values())[i % 5]
            ax.add_patch(Rectangle((box.start, offset), box.end - box.start, box.hi, fc=color, alpha=0.75,
                                   ec=mpl.rcParams["axes.facecolor"], lw=0.6))  # fmt: skip
        ax.axhline(best.bound, color=COLORS["waits"], ls="--", lw=1.2)
        ax.set(xlim=(0, 34), title=f"{title}: peak {peak}", xlabel="time")
    sides[0].set(ylabel="addresses", ylim=(0, 1.3 * best.bound))
    return figure


def _first_fit(problem: PackingProblem) -> list[int]:
    """Each body, the largest first, at the lowest place where nothing placed before is in its way."""
    offsets = [-1] * len(problem.bodies)
    boxes = [b.boxes[0] for b in problem.bodies]
    for i in sorted(range(len(boxes)), key=lambda i: -boxes[i].hi):
        beside = [
            j
            for j, o in enumerate(offsets)
            if o >= 0 and boxes[j].start < boxes[i].end and boxes[i].start < boxes[j].end
        ]
        tops = sorted([0, *(offsets[j] + boxes[j].hi for j in beside)])
        free = (t for t in tops if all(t + boxes[i].hi <= offsets[j] or t >= offsets[j] + boxes[j].hi for j in beside))
        offsets[i] = next(free)
    return offsets


@cache
def _routing() -> Analysis:
    """A made-up trace: prompts of four kinds, each with experts that it prefers, and tokens that come again."""
    rng = np.random.default_rng(2)
    prompts, tokens, layers, experts, top_k = 40, 60, 4, 32, 4
    words = rng.integers(0, 90, (4, tokens))
    taste = rng.gumbel(size=(4, layers, experts))
    of_word = 1.6 * rng.gumbel(size=(90, layers, experts))
    ids = np.empty((prompts * tokens, layers, top_k), np.uint8)
    for t in range(len(ids)):
        kind = t // tokens % 4
        score = taste[kind] + of_word[words[kind, t % tokens]] + 0.6 * rng.gumbel(size=(layers, experts))
        ids[t] = np.argsort(-score, axis=1)[:, :top_k]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.npz"
        np.savez(path, experts=ids, offsets=np.arange(prompts + 1, dtype=np.int64) * tokens)
        return analyse(
            path, experts=experts, caches="6,8,12,16,24", policies="lru,lfu,decayed,recall,belady", warm_prompts=4,
            cold=False, windows="4,8,16,32,56", seed=0, progress=lambda _what, _share: None,
        )  # fmt: skip


def experts() -> Figure:
    """Hit rates against Belady, SRP and SCH, working sets: what `tensorstow experts --picture` draws."""
    found = _routing()
    return experts_picture(charts(found), "a made-up trace: 2,400 tokens, 4 layers of 32 experts, 4 a token")


def _legend(ax: Axes) -> None:
    ax.legend(fontsize=7.5, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)


FIGURES: dict[str, Callable[[], Figure]] = {
    "layers": layers,
    "stays": stays,
    "fractions": fractions,
    "budgets": budgets,
    "packing": packing,
    "experts": experts,
}

LIGHT = {"text.color": "#1b1f24", "figure.facecolor": "#ffffff", "axes.facecolor": "#ffffff"}
DARK = {"text.color": "#e2e4e9", "figure.facecolor": "#1e2129", "axes.facecolor": "#1e2129"}


def render(name: str, *, dark: bool) -> bytes:
    """A figure as SVG, for a light or a dark page. Equal plans give equal bytes."""
    colors = DARK if dark else LIGHT
    ink = colors["text.color"]
    style: dict[Any, Any] = {
        **colors, "axes.edgecolor": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink,
        "font.size": 9, "svg.hashsalt": name, "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        held = io.BytesIO()
        FIGURES[name]().savefig(held, format="svg", metadata={"Date": None})
    return held.getvalue()
