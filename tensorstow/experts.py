"""`tensorstow experts`: what a routing trace says, and how caching policies fare on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .console import plain_table
from .ir.errors import InputError
from .ir.sizes import format_size, parse_size
from .planner.experts.analysis import LayerSummary, Window, layer_summaries, sch, window_summary
from .planner.experts.policies import POLICIES, chosen_policies
from .planner.experts.replay import Least, Row, least_loads, replay_all
from .planner.experts.stall import LinkModel, StallRow, stall_rows
from .planner.experts.trace import Trace, read_trace

Progress = Callable[[str, float], None]

WINDOWS = (4, 16, 64, 256)
"""Tokens of the windows that SRP, SCH and the working set are told of, unless others are given."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the command tells. `sch` is by window and by capacity; `least` is there where experts differ in size."""

    trace: Trace
    warm_prompts: int
    cold: bool
    rows: tuple[Row, ...]
    windows: tuple[Window, ...]
    sch: dict[int, dict[int, float]]
    layers: tuple[LayerSummary, ...]
    stall: tuple[StallRow, ...] = ()
    stall_tokens: int = 0
    least: tuple[Least, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The JSON object of `experts --json`."""
        timed = (
            {} if not self.stall else {"stall": [asdict(row) for row in self.stall], "stall_tokens": self.stall_tokens}
        )
        bounds = {"least": [asdict(one) for one in self.least]} if self.least else {}
        return {
            **timed,
            **bounds,
            "layers": self.trace.layers,
            "experts": self.trace.experts,
            "top_k": self.trace.top_k,
            "tokens": self.trace.tokens,
            "prompts": self.trace.prompts,
            "warm_prompts": self.warm_prompts,
            "cold_each_prompt": self.cold,
            "rows": [asdict(row) for row in self.rows],
            "srp": {str(w.m): w.srp for w in self.windows},
            "sch": {str(m): {str(c): rate for c, rate in rates.items()} for m, rates in self.sch.items()},
            "windows": [asdict(w) for w in self.windows],
            "per_layer": [asdict(layer) for layer in self.layers],
        }


def analyse(
    path: Path,
    *,
    experts: int,
    caches: str,
    policies: str | None,
    warm_prompts: int,
    cold: bool,
    windows: str | None,
    seed: int,
    progress: Progress,
    link: LinkModel | None = None,
    stall_tokens: int = 400,
) -> Analysis:
    """Read a trace, replay policies on it and count over its windows; with `link`, time its last `stall_tokens` too.

    Raises InputError for what cannot be used, InfeasibleError for a cache that cannot hold one token's experts.
    """
    trace = read_trace(path, experts)
    capacities = _capacities(caches, trace)
    for capacity in capacities:
        trace.check_capacity(capacity)
    chosen = chosen_policies(policies, trace, warm_prompts)
    lengths = _lengths(windows)
    progress("bounding what must be loaded", 0.0)
    least = least_loads(trace, capacities, warm_prompts=warm_prompts, cold=cold)
    rows = replay_all(
        trace, capacities, chosen, warm_prompts=warm_prompts, cold=cold, seed=seed, progress=progress, least=least
    )
    progress("counting over windows", 0.0)
    start = int(trace.offsets[warm_prompts])
    used = trace.of_used()
    segments = {m: {c: sch(used, m, c, cold=cold, warm_tokens=start) for c in capacities} for m in lengths}
    found = tuple(window_summary(used, m) for m in lengths)
    layers = layer_summaries(trace)
    if link is None:
        return Analysis(trace, warm_prompts, cold, rows, found, segments, layers, least=least)
    progress("replaying with time", 0.0)
    timed = max(1, min(stall_tokens, trace.tokens - start))
    stall = stall_rows(trace, capacities, link, warm_tokens=trace.tokens - timed, cold=cold)
    return Analysis(trace, warm_prompts, cold, rows, found, segments, layers, stall, timed, least)


def _capacities(text: str, trace: Trace) -> tuple[int, ...]:
    """--cache: numbers of experts; sizes in bytes where the trace's experts differ in size."""
    found: list[int] = []
    for part in text.split(","):
        if trace.sizes is not None:
            found.append(parse_size(part))
        elif part.strip().isascii() and part.strip().isdigit():
            found.append(int(part))
        else:
            raise InputError(f"--cache {text}: write whole numbers of experts, with commas between them, as 8,16")
    return tuple(dict.fromkeys(found))


def _lengths(text: str | None) -> tuple[int, ...]:
    if text is None:
        return WINDOWS
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--window {text}: write whole numbers of tokens above 0, with commas between them, as 16,64")
    return tuple(dict.fromkeys(int(part) for part in parts))


def print_analysis(found: Analysis, out: Console) -> None:
    """The tables that people read: policies, windows, layers."""
    trace = found.trace
    counted = trace.tokens - int(trace.offsets[found.warm_prompts])
    start = "empty before each prompt" if found.cold else "empty at the start"
    warm = f", {found.warm_prompts} prompts only warm them up" if found.warm_prompts else ""
    out.print(
        f"[bold]{trace.tokens:,} tokens[/] of {trace.prompts:,} prompts, {trace.layers} layers of {trace.experts} "
        f"experts, {trace.top_k} a token; {counted:,} tokens counted"
    )
    out.print(f"A cache for each layer, {start}{warm}. A set is looked up as one, and stays until the next.\n")
    _print_rows(found, out)
    out.print()
    if found.stall:
        _print_stall(found, out)
        out.print()
    _print_windows(found, out)
    out.print()
    _print_layers(found, out)


def _cache(found: Analysis, cache: int) -> str:
    return str(cache) if found.trace.sizes is None else format_size(cache)


def _print_rows(found: Analysis, out: Console) -> None:
    alike = found.trace.sizes is None
    unit, best = ("loads/token", "LRU to Belady") if alike else ("bytes/token", "LRU to bound")
    table = plain_table("cache", "policy", "hit rate", best, "of Belady", unit, "unasked", "us/event", "")
    table.columns[0].justify, table.columns[1].justify, table.columns[8].justify = "right", "left", "left"
    before = None
    least = {one.cache: one for one in found.least}
    for row in found.rows:
        if before not in (None, row.cache):
            table.add_row()
        if before != row.cache and row.cache in least:
            _add_least(table, _cache(found, row.cache), least[row.cache])
            before = row.cache
        table.add_row(
            _cache(found, row.cache) if before != row.cache else "",
            row.policy if row.causal else f"[dim]{row.policy}[/]",
            f"{row.hit_rate:.4f}",
            f"{row.gap_closed:.1%}",
            f"{row.of_belady:.4f}",
            f"{row.loads_per_token:,.2f}",
            f"{row.ahead:,.2f}" if row.ahead else "",
            f"{row.ns_per_event / 1e3:.2f}",
            f"[dim]{POLICIES[row.policy].about}{'' if row.causal else '; knows the future'}[/]",
        )
        before = row.cache
    out.print(table)


def _add_least(table: Table, cache: str, least: Least) -> None:
    about = "no policy that loads on demand loads less; knows the future"
    if not least.complete:
        about = f"{about}; time ran out: of some tokens, first uses alone"
    loads = f"{least.nbytes_per_token:,.2f}"
    table.add_row(cache, "[dim]bound[/]", "", "", "", loads, "", "", f"[dim]{about}[/]")


def _print_stall(found: Analysis, out: Console) -> None:
    out.print(f"Waits for loads, ms a token, in the last {found.stall_tokens:,} tokens; what came before warms up.")
    table = plain_table("cache", "schedule", "wait", "of LRU", "of bound", "deciding", "loads", "ahead", "in vain")
    table.columns[0].justify, table.columns[1].justify = "right", "left"
    before = None
    for row in found.stall:
        bound = row.schedule == "bound"
        table.add_row(
            _cache(found, row.cache) if row.cache != before else "",
            row.schedule,
            f"{row.stall_ms:.3f}",
            "" if bound else f"{row.of_lru:.1%}",
            "" if row.of_bound is None else f"{row.of_bound:.2f}",
            f"{row.decide_ms:.3f}" if row.decide_ms else "",
            *(["", "", ""] if bound else [f"{row.demanded:.2f}", f"{row.ahead:.2f}", f"{row.wasted:.2f}"]),
        )
        before = row.cache
    out.print(table)
    if not all(row.complete for row in found.stall):
        out.print("Time ran out: the bound counts a part of these tokens, so what is told against it is too large.")


def _print_windows(found: Analysis, out: Console) -> None:
    caches = list(dict.fromkeys(row.cache for row in found.rows))
    names = [f"SCH, C={_cache(found, c)}" for c in caches]
    table = plain_table("window", "SRP", "experts used", *names, words=0)
    for window in found.windows:
        rates = [f"{found.sch[window.m][c]:.4f}" for c in caches]
        none = window.windows == 0
        table.add_row(
            f"{window.m} tokens",
            "no window" if none else f"{window.srp:.4f}",
            "" if none else f"{window.working_set:.1f}",
            *rates,
        )
    out.print(table)


def _print_layers(found: Analysis, out: Console) -> None:
    table = plain_table("layer", "used", "effective", "foreseen by use", "by last token", "by layer before", words=0)
    for layer in found.layers:
        table.add_row(
            str(layer.layer),
            str(layer.used),
            f"{layer.effective:.1f}",
            f"{layer.by_use:.3f}",
            f"{layer.repeated:.3f}",
            "" if layer.by_layer_before is None else f"{layer.by_layer_before:.3f}",
        )
    out.print(table)
