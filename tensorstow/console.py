"""How the command line speaks: results on stdout, remarks, errors and progress on stderr; tables and JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .ir.sizes import format_seconds as seconds

WIDTH = 200
"""Columns that a table may take. A terminal wraps what is too long for it: nothing is cut off, there or in a pipe."""

# Whoever sets NO_COLOR (no-color.org) gets plain characters: bold and dim are escape codes as well.
PLAIN = bool(os.environ.get("NO_COLOR"))
out = Console(highlight=False, soft_wrap=True, width=WIDTH, color_system=None if PLAIN else "auto")
err = Console(stderr=True, highlight=False, soft_wrap=True, color_system=None if PLAIN else "auto")


def print_json(facts: dict[str, Any]) -> None:
    """The one JSON object on stdout."""
    sys.stdout.write(json.dumps(facts, sort_keys=True, allow_nan=False) + "\n")


def error(message: str, status: int, *, as_json: bool, smallest_nbytes: int | None = None) -> None:
    """One clear error on stderr; with --json also as the one object on stdout."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    if as_json:
        least = {} if smallest_nbytes is None else {"smallest_nbytes": smallest_nbytes}
        print_json({"error": message, "exit_status": status, **least})


def causes(error: BaseException) -> None:
    """What an error was raised from, the nearest first, each with the line that raised it; on stderr."""
    found: BaseException | None = error
    while found is not None:
        frames = traceback.extract_tb(found.__traceback__)
        where = f" ({frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""
        word = "raised as" if found is error else "caused by"
        err.print(f"  [dim]{word}[/] {type(found).__name__}: {escape(str(found))}[dim]{escape(where)}[/]")
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def note(message: str) -> None:
    """A remark on stderr."""
    err.print(escape(message))


class _Clock:
    """Since when something has been under way."""

    def __init__(self) -> None:
        self.what, self.began = "", 0.0

    def seconds(self, what: str) -> float:
        """Since `what` was first named without anything else in between."""
        now = time.monotonic()
        if what != self.what:
            self.what, self.began = what, now
        return now - self.began


_clock = _Clock()
LONG_S = 2.0
"""What takes longer is told how long it will take, as far as that is known."""


def remaining(share: float, taken_s: float) -> str:
    """' 40%, 12 s left': how long the rest takes at the pace so far, from `LONG_S` on; no guess without a share."""
    if share <= 0:
        return f", {taken_s:.0f} s" if taken_s >= LONG_S else ""
    left = f", {seconds(taken_s * (1 - share) / share)} left" if taken_s >= LONG_S and share < 1 else ""
    return f" {min(share, 1.0):4.0%}{left}"


def progress(what: str, share: float) -> None:
    """A line that replaces itself on a terminal; nothing where nobody watches."""
    if err.is_terminal:
        percent = remaining(share, _clock.seconds(what))
        width = err.width - 1  # a line that wraps cannot replace itself
        line = what[: max(8, width - len(percent))] + percent
        err.file.write("\r")  # rich takes it out of what it prints
        err.print(f"[dim]{escape(line.ljust(width))}[/]", end="")


def done() -> None:
    """Clear the progress line."""
    if err.is_terminal and _clock.what:
        err.file.write("\r" + " " * (err.width - 1) + "\r")
        err.file.flush()


def percent(gap: float) -> str:
    """'+1.3%' above the bound."""
    return f"+{gap:.1%}" if gap < 10 else f"{gap + 1:.0f}x"


def figure(value: float) -> str:
    """'0.253', '82.6', '1,979': three figures, or all in front of the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def plain_table(*columns: str, words: int = 1) -> Table:
    """A table without lines; the first `words` columns hold words and begin at their left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < words else "right", no_wrap=True)
    return table


def print_markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> None:
    """The same on stdout as Markdown, and nothing else."""
    rule = ["---" if i < words else "---:" for i in range(len(headings))]
    for cells in (headings, rule, *rows):
        sys.stdout.write("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; a value too long for the terminal goes on below itself."""
    width = max(len(name) for name, _ in rows)
    columns = shutil.get_terminal_size().columns if out.is_terminal else WIDTH
    for name, value in rows:
        first, *more = textwrap.wrap(value, max(columns - width - 4, 20), break_on_hyphens=False) or [""]
        out.print(f"  [dim]{escape(name):<{width}}[/]  {escape(first)}")
        for line in more:
            out.print(f"  {'':<{width}}  {escape(line)}")
