"""The page of a plan in a browser: pointer, keyboard, search and legend do what they say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorstow.page.boxes import draw
from tensorstow.page.compare_page import comparison_page
from tensorstow.page.page import page
from tensorstow.planner.compare import compare
from tests.graphs import KIB, chain, machine

from .test_page import WEIGHTS, planned

playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make docs` does")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")]


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Any]:
    """The page of a small plan, opened 1,300 pixels wide; nothing may go wrong in it, and nothing be fetched."""
    path = tmp_path / "plan.html"
    path.write_text(page(draw(planned()), ()), encoding="utf-8")
    trouble: list[str] = []

    def failed(error: Any) -> None:
        trouble.append(str(error))

    def asked(request: Any) -> None:
        if request.url != path.as_uri():
            trouble.append(request.url)

    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        opened = chromium.new_page(viewport={"width": 1300, "height": 900})
        opened.on("pageerror", failed)
        opened.on("request", asked)
        opened.goto(path.as_uri())
        opened.wait_for_function("document.body.dataset.complete !== undefined")
        yield opened
        chromium.close()
    assert trouble == []


def view(tab: Any) -> list[float]:
    return tab.evaluate("[shared.from, shared.to, shared.time.end]")


def test_a_page_is_drawn_and_answers(tab: Any) -> None:
    assert tab.inner_text("#trouble") == ""
    box = tab.locator("#map0 canvas").bounding_box()
    inked = "(() => { const c = document.querySelector('#map0 canvas'); return c.getContext('2d')"
    assert tab.evaluate(inked + ".getImageData(c.width / 2, c.height / 2, 1, 1).data[3] })()") > 0
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 60)
    told = tab.inner_text(".note")
    assert "KiB weight" in told
    assert "for the whole pass" in told or "steps " in told
    # The part that is dragged over is shown, in all charts.
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 100, steps=3)
    tab.mouse.up()
    start, end, length = view(tab)
    assert 0.3 * length < start < end < 0.8 * length
    tab.focus("#map0 canvas")
    tab.keyboard.press("0")
    assert view(tab) == [0, length, length]


def test_the_keyboard_goes_from_one_to_the_next(tab: Any) -> None:
    tab.focus("#time canvas")
    marked: list[str] = []
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text(".spoken")
        marked.append(tab.locator("#time .mark").get_attribute("style"))
    assert len(set(marked)) == 3
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#time .mark").get_attribute("style") == marked[1]
    length = view(tab)[2]
    tab.keyboard.press("+")
    start, end, _ = view(tab)
    assert end - start == pytest.approx(length / 2)


def test_what_is_sought_is_counted_and_kinds_can_be_hidden(tab: Any) -> None:
    name = tab.evaluate("shared.charts[0].rects[0].text.split('\\n')[0]")
    tab.fill("#seek", name)
    count = int(tab.inner_text("#sought").split()[0])
    assert 0 < count < tab.evaluate("shared.charts.reduce((n, c) => n + c.rects.length, 0)")
    tab.fill("#seek", "")
    assert tab.inner_text("#sought") == ""
    key = tab.locator("#map0 button.key").first
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert tab.evaluate("shared.charts[0].rects.filter(r => r.kind === 0).every(r => !shared.charts[0].shows(r))")


def test_a_comparison_fits_a_phone_and_sends_nothing_away(tmp_path: Path) -> None:
    box, path = machine(260 * KIB), tmp_path / "compare.html"
    found = compare(chain(WEIGHTS, ns=50_000), box, ("lru", "on-demand"), time_limit_s=1)
    path.write_text(comparison_page("two loaders", found), encoding="utf-8")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        opened = chromium.new_page(viewport={"width": 390, "height": 844})
        opened.goto(path.as_uri())
        opened.wait_for_function("document.body.dataset.complete !== undefined")
        buttons = opened.evaluate("[...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title)")
        width = opened.evaluate("document.documentElement.scrollWidth")
        chromium.close()
    assert width == 390
    assert "Zoom" in buttons
    assert not [b for b in buttons if "Share" in b or "Cloud" in b]
