"""Files: round trips are exact, and what is damaged, edited or of another kind is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tensorstow.ir.codec import digest, dumps, from_json, loads, to_json
from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.files import PlanFile, read_plan, write_plan
from tensorstow.ir.graph import Graph
from tensorstow.ir.program import ModelSource, Program, SourceFile
from tensorstow.planner.build import plan_graph

from ..graphs import KIB, chain, machine


@pytest.fixture(scope="module")
def file() -> PlanFile:
    graph, box = chain([64 * KIB] * 4), machine(200 * KIB)
    plan = plan_graph(graph, box, strategy="on-demand")
    program = Program("test", {"op0": "d"}, {"d": b"\x00\xff"}, (), ("x",), ("y",))
    source = ModelSource("model.onnx", {"batch": 1}, (SourceFile("model.onnx", 10, 20),))
    return PlanFile(plan, graph, box, program, source, 7)


def test_round_trip_is_byte_identical(file: PlanFile, tmp_path: Path) -> None:
    write_plan(file, tmp_path / "a.json")
    read = read_plan(tmp_path / "a.json")
    write_plan(read, tmp_path / "b.json")
    assert read == file
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_keys_are_sorted_and_the_schema_is_stated(file: PlanFile, tmp_path: Path) -> None:
    write_plan(file, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    document = json.loads(text)
    assert document["schema"] == "tensorstow-plan/1"
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"


def test_digest_depends_on_every_field() -> None:
    graph = chain([64 * KIB] * 3)
    other = replace(graph, operators=(replace(graph.operators[0], flops=1), *graph.operators[1:]))
    assert digest(graph) == digest(chain([64 * KIB] * 3))
    assert digest(graph) != digest(other)


def test_a_plan_edited_by_hand_is_refused(file: PlanFile, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_plan(file, path)
    path.write_text(path.read_text().replace('"fixed_nbytes":7', '"fixed_nbytes":8'))
    with pytest.raises(PlanMismatchError, match="changed after it was written"):
        read_plan(path)


def test_a_plan_of_another_machine_in_one_file_is_refused(file: PlanFile, tmp_path: Path) -> None:
    write_plan(replace(file, machine=machine(100 * KIB)), tmp_path / "a.json")
    with pytest.raises(PlanMismatchError, match="plan is for machine"):
        read_plan(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JSON file"),
        (b"[]", "not a plan file"),
        (b'{"schema": "other/9"}', "schema 'other/9'"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b"[" * 100_000, "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
    ],
)
def test_what_is_no_plan_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_plan(tmp_path / "a.json")


def test_a_truncated_file_is_refused(file: PlanFile, tmp_path: Path) -> None:
    write_plan(file, tmp_path / "a.json")
    content = (tmp_path / "a.json").read_bytes()
    (tmp_path / "a.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a JSON file"):
        read_plan(tmp_path / "a.json")


def test_a_missing_file_and_an_unwritable_place_say_so(file: PlanFile, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot write"):
        write_plan(file, tmp_path / "nowhere" / "a.json")


@pytest.mark.parametrize("change", [{"name": 3}, {"operators": {}}, {"inputs": ["x", 3]}, {"extra": 1}, {"name": None}])
def test_ill_typed_entries_name_their_place(change: dict[str, object]) -> None:
    data = {**loads(dumps(chain([4 * KIB])), "here"), **change}
    with pytest.raises(InputError, match="here"):
        from_json(Graph, data, "here")


def test_infinite_numbers_are_not_written(file: PlanFile) -> None:
    with pytest.raises(InputError, match="finite"):
        to_json(replace(file.plan.certificate, bound_s=float("nan")))
