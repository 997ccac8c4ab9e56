"""What every page is made of: a template, the charts or figures of it, and the scripts that draw them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from .library import plotly_script

Figure = dict[str, Any]
"""As plotly describes it."""


def document(
    title: str,
    body: Iterable[str],
    *,
    figures: Mapping[str, Figure] | None = None,
    charts: Mapping[str, Any] | None = None,
) -> str:
    """A page that stands alone. `body` is HTML; each chart or figure is drawn where `figure_place` of its name stands.

    `charts` are drawn by scripts of our own, `figures` by plotly's, which the page then holds as well.
    """
    scripts: list[str] = []
    if charts:
        scripts += [_data("charts", charts), _script("unpack.js", "charts.js", "explore.js")]
    if figures:
        scripts += [_data("figures", figures), _block("library", plotly_script()), _script("unpack.js", "plotted.js")]
    return _filled({"title": escape(title), "body": "\n".join(body), "scripts": "\n".join(scripts)})


def _data(name: str, content: Mapping[str, Any]) -> str:
    return _block(name, json.dumps(content, allow_nan=False, separators=(",", ":")))


def _block(name: str, text: str) -> str:
    return f'<script id="{name}" type="application/gzip-base64">{_packed(text)}</script>'


def _script(*names: str) -> str:
    return "<script>\n" + "".join(_read(name) for name in names) + "</script>"


def _read(name: str) -> str:
    return files("tensorstow.page").joinpath(name).read_text(encoding="utf-8")


def _filled(fields: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], _read("template.html"))


def _packed(text: str) -> str:
    # In base64 there is no '<': nothing in a model's names can end the script that holds it.
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def figure_place(name: str) -> str:
    """Where the figure `name` is drawn."""
    return f'<div class="figure" id="{name}"></div>'


def cards_of(cards: Iterable[tuple[str, str]]) -> str:
    """Figures in large type with what they are."""
    inside = "".join(f'<div class="card"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in cards)
    return f'<div class="cards">{inside}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of plain text, the first column to the left."""
    titles = "".join(f"<th>{escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'
