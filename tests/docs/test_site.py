"""The site's parts belong together: its pages, its figures, its architecture picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.figure_layers import imports
from docs.figures import FIGURES
from tests.faults.table import FAULTS

from .snippets import ROOT, pages


def test_every_figure_that_a_page_shows_is_drawn_and_every_drawn_one_is_shown() -> None:
    shown = {name for p in pages().values() for name in re.findall(r"figures/([\w-]+)\.svg", p.read_text())}
    assert shown == set(FIGURES)


def test_every_page_of_the_menu_is_there() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert len(listed) > 15
    assert not {name for name in listed if not (ROOT / "docs" / name).is_file()}


def test_the_picture_of_the_layers_is_that_of_the_imports() -> None:
    found = imports()
    assert found["planner", "ir"] > 50
    assert found["runtime", "ir"] > 30
    origins = {origin for origin, _ in found}
    assert "ir" not in origins
    assert "solvers" not in origins
    assert {target for origin, target in found if origin == "runtime"} == {"ir"}


def test_the_search_works_where_the_site_is_opened_from_a_folder(tmp_path: Path) -> None:
    """Pages of a folder may load scripts, but neither read files nor start workers: so the index is a script."""
    hooks = pytest.importorskip("docs.hooks", reason="mkdocs is not installed: `make docs` does")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.json").write_text('{"docs": []}')
    hooks.on_post_build({"site_dir": str(tmp_path)})
    assert (tmp_path / "search" / "search_index.js").read_text() == 'var __index = {"docs": []}'
    scripts = re.search(r"polyfills: \[([\w.]+)\]", (ROOT / "mkdocs.yml").read_text())
    assert scripts is not None
    assert "window.Worker" in (ROOT / "docs" / scripts[1]).read_text()


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:ir|solvers|planner|runtime|tensorstow|tests)/[a-z_]+(?:/[a-z_]+)*)", text))
    assert len(named) > 20
    assert not {n for n in named if not (ROOT / n).is_dir() and not (ROOT / f"{n}.py").is_file()}


def test_every_kind_of_fault_has_a_row_of_the_page() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+?) \| \d+ \| \d+ \| \d+ \| \d+ \|$", text, re.MULTILINE)
    assert set(rows) >= set(FAULTS)
    assert {r for r in rows if not r.startswith("mutants of a file: ")} == set(FAULTS)
