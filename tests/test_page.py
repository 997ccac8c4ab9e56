"""Pictures of plans: what is drawn is what the plan says, pages stand alone, traces and snapshots can be read."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tensorstow.ir.errors import InputError
from tensorstow.ir.files import PlanFile, read_plan, write_plan
from tensorstow.ir.graph import Graph
from tensorstow.page import charts
from tensorstow.page.boxes import COMPUTES, LOADS, STALLS, Bar, Box, draw
from tensorstow.page.costs import upgrades
from tensorstow.page.merge import merge_bars, merge_boxes
from tensorstow.page.page import page
from tensorstow.page.picture import write_picture
from tensorstow.page.snapshot import write_snapshot
from tensorstow.page.trace import read_measured, write_trace
from tensorstow.planner.build import plan_graph
from tests.conftest import Cli
from tests.graphs import KIB, chain, machine
from tests.models import write_mlp

WEIGHTS = [64 * KIB, 128 * KIB, 96 * KIB, 64 * KIB, 160 * KIB]


def planned(graph: Graph | None = None, capacity: int = 260 * KIB) -> PlanFile:
    graph = graph or chain(WEIGHTS, ns=50_000)
    box = machine(capacity)
    return PlanFile(plan_graph(graph, box, time_limit_s=2), graph, box, None, None, 0)


def unpacked(text: str, name: str) -> str:
    found = re.search(rf'<script id="{name}"[^>]*>([^<]*)</script>', text)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


def test_rectangles_cover_what_the_plan_holds() -> None:
    file = planned()
    drawing = draw(file)
    boxes = drawing.memory["dram"]
    instants = {b.start_ns for b in boxes}
    for at in instants:
        live = sorted((b for b in boxes if b.start_ns <= at < b.end_ns), key=lambda b: b.low)
        assert all(a.high <= b.low for a, b in pairwise(live)), "two share addresses at a time"
    area = sum((b.high - b.low) * (b.end_ns - b.start_ns) for b in boxes)
    ends = [at for at, _ in drawing.held["dram"][1:]] + [drawing.timeline.pass_ns]
    held = sum(n * (end - at) for (at, n), end in zip(drawing.held["dram"], ends, strict=True))
    assert area == held > 0
    workspace = file.plan.workspace_nbytes.get("dram", 0)
    assert max(n for _, n in drawing.held["dram"]) + workspace <= file.plan.certificate.peak_nbytes["dram"]


def test_lanes_are_the_simulators() -> None:
    file = planned()
    drawing = draw(file)
    computing = sum(b.end_ns - b.start_ns for b in drawing.lanes if b.kind == COMPUTES)
    waiting = sum(b.end_ns - b.start_ns for b in drawing.lanes if b.kind == STALLS)
    assert computing == drawing.timeline.compute_ns
    assert waiting == drawing.timeline.wait_ns > 0
    moving = sum(b.end_ns - b.start_ns for b in drawing.lanes if b.kind == LOADS)
    assert moving == sum(e.end_ns - e.start_ns for e in drawing.timeline.transfers)
    assert all(0 <= b.start_ns <= b.end_ns <= drawing.timeline.pass_ns for b in drawing.lanes)


def test_short_bars_join_and_long_ones_do_not() -> None:
    bars = [Bar(COMPUTES, "u", i, i + 1, f"op{i}") for i in range(100)] + [Bar(COMPUTES, "u", 200, 300, "long")]
    merged = merge_bars(bars, 10)
    assert len(merged) < 20
    assert bars[-1] in merged
    assert sum(b.count for b in merged) == len(bars)
    assert merge_bars(bars, 1) == tuple(bars)


def test_a_page_stands_alone() -> None:
    drawing = draw(planned())
    text = page(drawing, ())
    assert not re.search(r'(src|href)\s*=\s*["\']', text), "it must fetch nothing"
    held: dict[str, Any] = json.loads(unpacked(text, "charts"))
    drawn = held["charts"]
    assert set(drawn) == {"map0", "held0", "time"}
    for name in drawn:
        assert f'id="{name}"' in text
    assert held["time"]["end"] == drawing.timeline.pass_ns
    area = sum(
        (end - start) * (high - low)
        for k in drawn["map0"]["kinds"]
        for start, end, low, high in zip(k["start"], k["end"], k["low"], k["high"], strict=True)
    )
    assert area == sum((b.end_ns - b.start_ns) * (b.high - b.low) for b in drawing.memory["dram"])
    assert list(zip(drawn["held0"]["at"], drawn["held0"]["nbytes"], strict=True)) == list(drawing.held["dram"])
    assert sum(len(k["start"]) for k in drawn["time"]["kinds"]) == len(drawing.lanes)
    assert "ssd-&gt;dram" in text, "what moves, and how busy the link is"
    assert "{{" not in text
    assert len(text) < 200_000, "this page needs no library"


def test_names_of_a_model_cannot_write_the_page() -> None:
    graph = chain(WEIGHTS, ns=50_000)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    graph = replace(graph, name=evil)
    text = page(draw(planned(graph)), ())
    assert evil not in text
    assert "<img" not in text
    assert "&lt;/script&gt;" in text


def test_more_rectangles_than_a_browser_bears_are_drawn_without_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = draw(planned())
    boxes = drawing.memory["dram"]
    most = len(boxes) - 4
    monkeypatch.setattr(charts, "LABELLED", most)
    kinds = charts.memory_chart(drawing, "dram")["kinds"]
    texts = [text for k in kinds for text in k["text"]]
    assert sum(bool(text) for text in texts) == most
    assert 0 < sum(not text for text in texts) <= 4, "what has no text is drawn as well"


def test_a_budget_far_away_does_not_flatten_what_is_held() -> None:
    near = draw(planned())
    chart = charts.held_chart(near, "dram")
    most = max(chart["nbytes"])
    assert most <= chart["room"] < chart["top"]
    plan = replace(near.file.plan, capacity_nbytes={"dram": 1 << 40})
    far = charts.held_chart(replace(near, file=replace(near.file, plan=plan)), "dram")
    assert most < far["top"] < 2 * most
    assert any("1024.0 GiB" in line["name"] or "1.0 TiB" in line["name"] for line in far["lines"])


def test_small_rectangles_join_on_a_grid_and_none_vanishes() -> None:
    row = [Box("activation", 10 * i, 10 * i + 7, 100, 101, "") for i in range(50)]
    other = Box("activation", 5000, 5001, 9000, 9001, "")
    merged = merge_boxes([*row, other, Box("gradient", 0, 1, 100, 101, "")], 20, 50)
    assert len(merged) == 3
    for box in (*row, other):
        assert any(
            m.kind == box.kind
            and m.start_ns <= box.start_ns
            and box.end_ns <= m.end_ns
            and m.low <= box.low < box.high <= m.high
            for m in merged
        )
    assert sum((m.high - m.low) * (m.end_ns - m.start_ns) for m in merged) <= 50 * 500 + 2 * 20 * 50


def test_an_upgrade_that_helps_is_told_first() -> None:
    file = planned()
    found = upgrades(file, time_limit_s=5, progress=lambda _what, _share: None)
    assert [u.saved_s for u in found] == sorted((u.saved_s for u in found), reverse=True)
    best = found[0]
    assert 0 < best.saved_s <= file.plan.certificate.bound_s
    assert best.bound_s == pytest.approx(file.plan.certificate.bound_s - best.saved_s, rel=1e-6)
    by_name = {u.change: u.saved_s for u in found}
    assert any("dram" in name and saved > 0 for name, saved in by_name.items())


def test_trace_and_snapshot_say_the_same(tmp_path: Path) -> None:
    file = planned()
    drawing = draw(file)
    trace, snapshot = tmp_path / "t.json", tmp_path / "s.pickle"
    write_trace(file, trace, measured=[Bar(COMPUTES, "unit", 5, 1005, "<b>a &lt; b</b><br>1 us")])
    events = json.loads(trace.read_text())["traceEvents"]
    predicted = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    assert len(predicted) == len(drawing.lanes)
    assert sum(e["dur"] for e in predicted if e["cat"] == STALLS) * 1e3 == pytest.approx(drawing.timeline.wait_ns)
    (back,) = read_measured(trace)
    assert (back.start_ns, back.end_ns, back.text) == (5, 1005, "<b>a &lt; b</b><br>1 us")
    write_snapshot(file, snapshot)
    held = pickle.loads(snapshot.read_bytes())
    blocks: set[int] = set()
    for event in held["device_traces"][0]:
        if event["action"] == "alloc":
            assert event["addr"] not in blocks
            blocks.add(event["addr"])
        elif event["action"] == "free_completed":
            blocks.remove(event["addr"])
    assert not blocks


@pytest.mark.parametrize("content", [b"", b"[]", b'{"traceEvents": 3}', b'{"traceEvents": [{"pid": 2, "ph": "X"}]}'])
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.json"):
        read_measured(path)


def test_pictures_in_every_format(tmp_path: Path) -> None:
    file = planned()
    for name, magic in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")):
        write_picture(file, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(InputError, match=r"\.png, \.svg, \.pdf"):
        write_picture(file, tmp_path / "p.gif")
    assert not (tmp_path / "p.gif").exists()


def test_the_command_writes_what_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    write_plan(planned(), plan)
    done = cli("show", plan, "--html", tmp_path / "r.html", "--trace", tmp_path / "t.json")
    assert done.status == 0
    assert (tmp_path / "r.html").stat().st_size < 5_000_000
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert cli("show", plan, "--html", tmp_path / "none" / "r.html").status == 2
    assert cli("show", plan, "--html", tmp_path / "r2.html", "--measured", tmp_path / "t.json").status == 2
    assert not (tmp_path / "r2.html").exists()


def test_a_run_is_traced_beside_its_plan(cli: Cli, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    model = write_mlp(tmp_path / "mlp.onnx", width=256, layers=6, rows=2)
    plan, trace = tmp_path / "plan.json", tmp_path / "run.json"
    assert cli("plan", model, "--tier", "dram=900KiB", "-o", plan).status == 0
    assert cli("run", plan, "--repeat", "1", "--trace", trace).status == 0
    bars = read_measured(trace)
    ran = [b for b in bars if b.kind == COMPUTES]
    assert len(ran) == len(read_plan(plan).plan.steps)
    assert sum(b.kind == LOADS for b in bars) > 0
    assert cli("show", plan, "--html", tmp_path / "r.html", "--measured", trace).status == 0


def test_comparisons_and_sweeps_have_pages(cli: Cli, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "mlp.onnx", width=256, layers=6, rows=2)
    common = (
        "compare",
        model,
        "--machine",
        "rtx4090",
        "--strategies",
        "stow,lru",
        "--workers",
        "0",
        "--time-limit",
        "2",
    )
    assert cli(*common, "--tier", "hbm=900KiB", "--html", tmp_path / "c.html").status == 0
    bars = json.loads(unpacked((tmp_path / "c.html").read_text(), "figures"))["bars"]
    assert set(bars["data"][0]["y"]) == {"stow", "lru"}
    done = cli(*common, "--sweep", "90%,50%,1%,700KiB", "--html", tmp_path / "s.html", "--json")
    assert done.status == 0
    facts = json.loads(done.out)
    sizes = [p["capacity_nbytes"] for p in facts["sweep"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == int(0.9 * facts["peak_nbytes"])
    assert "reason" in facts["sweep"][-1], "nothing fits in 1%"
    bounds = [p["bound_s"] for p in facts["sweep"][:-1]]
    assert bounds == sorted(bounds), "less memory is never faster"
    lines = json.loads(unpacked((tmp_path / "s.html").read_text(), "figures"))["pareto"]["data"]
    assert [t["name"] for t in lines] == ["stow", "lru", "bound"]
    drawn = lines[-1]["y"]
    assert [y / drawn[0] for y in drawn] == pytest.approx([b / bounds[0] for b in bounds])


@pytest.mark.parametrize("budgets", ["", "0%", "x%", "60%,,"])
def test_budgets_that_are_none_are_refused(cli: Cli, tmp_path: Path, budgets: str) -> None:
    model = write_mlp(tmp_path / "mlp.onnx", width=64, layers=2)
    assert cli("compare", model, "--machine", "rtx4090", "--sweep", budgets, "--workers", "0").status == 2


def test_slices_of_one_thread_of_a_trace_do_not_cross(tmp_path: Path) -> None:
    """Viewers drop what begins in a slice of its thread and ends behind it; a lane has several requests at once."""
    path = tmp_path / "t.json"
    spans = [(0, 900), (100, 400), (300, 1200), (950, 1000), (1200, 1300)]
    write_trace(planned(), path, measured=[Bar(LOADS, "ssd->dram", a, b, f"<b>{a}</b>") for a, b in spans])
    ends: dict[tuple[int, int], float] = {}
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    for event in sorted(events, key=lambda e: e["ts"]):
        thread = event["pid"], event["tid"]
        assert round(event["ts"] * 1e3) >= ends.get(thread, 0)
        ends[thread] = round((event["ts"] + event["dur"]) * 1e3)
    back = read_measured(path)
    assert sorted((b.start_ns, b.end_ns) for b in back) == spans
    assert {b.lane for b in back} == {"ssd->dram, measured"}


def test_the_viewer_of_pytorch_reads_the_snapshot(tmp_path: Path) -> None:
    from torch.cuda import _memory_viz  # pyright: ignore[reportPrivateUsage]

    file, path = planned(), tmp_path / "s.pickle"
    write_snapshot(file, path)
    held = pickle.loads(path.read_bytes())
    allocated = [e for e in held["device_traces"][0] if e["action"] == "alloc"]
    assert _memory_viz.trace(held).count(" = MEM[") == len(allocated) > 0
    assert _memory_viz.segsum(held).startswith("Summary of segments")  # it adds up the blocks of each
    held["segments"][0]["blocks"] = []
    with pytest.raises(AssertionError, match="Segment size mismatch"):
        _memory_viz.segsum(held)
