"""What every page is made of: a template that holds its figures and the script that draws them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from .figures import Figure
from .library import plotly_script


def document(title: str, body: Iterable[str], figures: Mapping[str, Figure]) -> str:
    """A page that stands alone. `body` is HTML; each figure is drawn where `figure_place` of its name stands."""
    return _filled(
        {
            "title": escape(title),
            "body": "\n".join(body),
            "figures": _packed(json.dumps(figures, allow_nan=False, separators=(",", ":"))),
            "library": _packed(plotly_script()),
        }
    )


def _filled(fields: Mapping[str, str]) -> str:
    template = files("tensorstow.page").joinpath("template.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], template)


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
