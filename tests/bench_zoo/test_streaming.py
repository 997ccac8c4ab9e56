"""Tests of bench/streaming: what is kept of runs, what rows say, and the plan's own share of a pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import streaming, streaming_units
from bench.streaming_units import Case, Unit, units
from tensorstow.ir.files import PlanFile, write_plan
from tensorstow.ir.simulate import simulate
from tensorstow.planner.build import plan_graph
from tests.graphs import chain, machine

CASES = [Case(700, 1, 1), Case(900, 2, 8)]
OURS: dict[str, Any] = {
    "rc": 0,
    "median_s": 2.0,
    "measured_s": [2.0, 2.0],
    "predicted_s": 1.0,
    "limit_s": {"compute": 1.0, "io": 1.6},
    "read_nbytes": 6_000_000_000,
    "as_planned": 1.1,
    "peak_rss_nbytes": 99,
    "promised_peak_nbytes": 100,
}
PLAN: dict[str, Any] = {"moved_nbytes": {"ssd->dram": 3_000_000_000, "dram->ssd": 5}}


def test_rounds_see_every_case_before_the_second() -> None:
    found = list(units(CASES, ("mmap",), 2))
    assert [u.who for u in found] == ["plan", "tensorstow", "mmap"] * 2 + ["tensorstow", "mmap"] * 2
    assert len({u.key for u in found}) == len(found)


def test_a_row_says_what_each_gave() -> None:
    case = CASES[0]
    runs = {
        Unit(case, "plan", 0).key: PLAN,
        Unit(case, "tensorstow", 0).key: OURS,
        Unit(case, "accelerate", 0).key: {"rc": 0, "median_s": 5.0},
        Unit(case, "mmap", 0).key: {"rc": -9},
    }
    row = streaming.cells(runs, case)
    assert row == [
        *("700", "1x1", "2.00 s", "1.250", "1.100", "2.000", "3.00", "1.000", "0.990"),
        *("5.00 s = 2.50x", "-", "killed (rc -9)"),
    ]
    assert streaming.cells(runs, CASES[1])[-1] == "not run yet"
    refused = {Unit(case, "plan", 0).key: {"error": "too little memory"}}
    assert streaming.cells(refused, case)[-1] == "too little memory"


def test_a_bench_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MEMCAP", tmp_path)
    ran: list[str] = []

    def model(name: str, folder: Path) -> Path:
        return folder / name

    def run(unit: Unit, folder: Path) -> dict[str, Any]:
        ran.append(unit.key)
        if unit.who == "plan":
            streaming.plan_path(folder, unit.case).touch()
        if unit.who == "mmap" and len(ran) == 3:
            raise KeyboardInterrupt
        return PLAN if unit.who == "plan" else OURS

    monkeypatch.setattr(streaming, "model", model)
    monkeypatch.setattr(streaming, "run", run)
    output = tmp_path / "found.json"
    arguments = [
        "--folder",
        str(tmp_path),
        "--caps",
        "700",
        "--shapes",
        "1x1,1x2",
        "--peers",
        "mmap",
        "-o",
        str(output),
    ]
    with pytest.raises(KeyboardInterrupt):
        streaming.main(arguments)
    assert len(json.loads(output.read_text())["runs"]) == 2
    assert streaming.main(arguments)["left"] == 0
    assert len(ran) == 7  # six, of which one twice
    assert streaming.main([*arguments, "--rounds", "2", "--minutes", "0"])["left"] == 4
    assert len(ran) == 7
    streaming.plan_path(tmp_path / "llama-852m", Case(700, 1, 2)).unlink()
    streaming.main(arguments)
    assert len(ran) == 10  # all of that case again


def test_a_plan_at_the_rates_of_a_run(tmp_path: Path) -> None:
    graph = chain([64 << 10] * 8, ns=20_000)
    box = machine(320 << 10)
    file = PlanFile(plan_graph(graph, box, strategy="stow", time_limit_s=5.0), graph, box, None, None, 0)
    path = tmp_path / "plan.json"
    write_plan(file, path)
    timeline = simulate(file.plan, graph, box)
    compute, io = timeline.compute_ns * 1e-9, max(timeline.lane_busy_ns.values()) * 1e-9
    assert io > compute  # the link is what it waits for
    same = streaming_units.at_rates(path, {"compute": compute, "io": io})
    assert same == pytest.approx(timeline.pass_ns * 1e-9 / io, rel=1e-6)
    slower = streaming_units.at_rates(path, {"compute": 3 * compute, "io": 3 * io})
    assert slower == pytest.approx(same, rel=0.01)  # everything longer by the same factor
    free = streaming_units.at_rates(path, {"compute": compute, "io": io * 1e-4})
    assert 1.0 <= free < 1.02
