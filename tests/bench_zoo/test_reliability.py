"""The series of random cases: which cases it has, that it goes on where it was ended, and what its record holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import reliability_cases
from bench.reliability_cases import Case, Series, case_name, parse_case, read_record, run_series
from tensorstow.ir.errors import InputError
from tests.faults.cases import Done
from tests.faults.kinds import MARKS


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that were run, in this process, none of them in earnest: seed 13 fails with wrong bits."""
    seen: list[Case] = []

    def run(todo: list[Case], jobs: int) -> object:
        for seed, kind in todo:
            seen.append((seed, kind))
            yield Done(seed, "a case", "failed", "bits", True) if seed == 13 else Done(seed, "", "planned"), kind, 0.5

    monkeypatch.setattr(reliability_cases, "_run_all", run)
    return seen


def test_executed_cases_come_in_turn() -> None:
    series = Series(10, 2, ("onnx", "module"))
    assert [series.case(i) for i in range(6)] == [
        (10, "planned"),
        (11, "onnx"),
        (12, "planned"),
        (13, "module"),
        (14, "planned"),
        (15, "onnx"),
    ]
    assert {Series(0, 0).case(i)[1] for i in range(40)} == {"planned"}


def test_a_series_goes_on_where_it_was_ended(tmp_path: Path, ran: list[Case]) -> None:
    series, path = Series(0, 5, ("onnx",)), tmp_path / "record.json"
    run_series(series, 12, 1, path)
    assert read_record(path, series).done == 12
    record = run_series(series, 30, 1, path)
    assert [seed for seed, _ in ran] == list(range(30))
    assert record == read_record(path, series)
    assert (record.done, record.cpu_s) == (30, 15.0)
    assert record.ended == {"planned: planned": 23, "onnx: planned": 6, "planned: failed": 1, "planned: wrong bits": 1}
    assert len(record.failures) == 1
    assert record.failures[0].startswith("--only 13: ")
    assert run_series(series, 30, 1, path) == record
    assert len(ran) == 30


def test_the_record_of_another_series_is_refused(tmp_path: Path, ran: list[Case]) -> None:
    path = tmp_path / "record.json"
    run_series(Series(0, 5), 2, 1, path)
    with pytest.raises(InputError, match=r"first=0.*first=1"):
        run_series(Series(1, 5), 2, 1, path)
    assert len(ran) == 2


@pytest.mark.parametrize("kind", MARKS)
def test_a_name_repeats_a_case(kind: str) -> None:
    assert parse_case(case_name(1203, kind)) == (1203, kind)


@pytest.mark.parametrize("text", ["", "x", "12xm", "-3", "12q"])
def test_what_is_no_case_is_told(text: str) -> None:
    with pytest.raises(InputError, match="is no case"):
        parse_case(text)
