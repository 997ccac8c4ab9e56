"""Plans that are none, or fit neither model nor machine: refused before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorstow.ir.files import read_plan, write_plan
from tests.bad_input.wrong import refused
from tests.conftest import Cli
from tests.models import write_mlp

pytestmark = pytest.mark.usefixtures("no_measuring")


def test_weights_that_changed_after_planning(cli: Cli, copied: Path, planned: Path) -> None:
    data = copied.with_name(copied.name + ".data")
    assert cli("run", planned, "--repeat", 1).status == 0
    stat = data.stat()
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    refused(cli("run", planned), data.name, "changed after planning", "plan again")
    with data.open("r+b") as file:
        file.write(b"\1\2\3\4")
    refused(cli("run", planned), data.name, "changed after planning")
    os.truncate(data, 100)
    refused(cli("run", planned), data.name, "100")
    data.unlink()
    refused(cli("run", planned), data.name)


def test_a_model_that_moved(cli: Cli, copied: Path, planned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in copied.parent.glob("mlp.onnx*"):
        path.rename(folder / path.name)
    refused(cli("run", planned), "mlp.onnx", "--model")
    said = cli("run", planned, "--model", folder / copied.name, "--verify", "--repeat", 1, "--json")
    assert said.status == 0, said.err
    assert said.json["verified"]["bit_identical"]
    refused(cli("run", planned, "--model", tmp_path / "nowhere.onnx"), "nowhere.onnx")
    other = write_mlp(tmp_path / "other.onnx", width=128, layers=4, rows=2)
    refused(cli("run", planned, "--model", other), "other.onnx", "not the model that was planned")


def test_another_model_of_the_same_form(cli: Cli, planned: Path, tmp_path: Path) -> None:
    """Only the file's content differs: the plan runs, with the weights it is given."""
    other = write_mlp(tmp_path / "other.onnx", width=256, layers=4, rows=2, seed=5)
    said = cli("run", planned, "--model", other, "--verify", "--repeat", 1, "--json")
    assert said.status == 0, said.err
    assert said.json["verified"]["bit_identical"]
    assert said.json["verified"]["within_tolerance"]


def test_a_plan_for_another_machine_or_box(cli: Cli, model: Path, planned: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    assert cli("plan", model, "--machine", "jetson-orin", "-o", path).status == 0
    refused(cli("run", path), "jetson-orin", "not this box", "--machine host")
    assert cli("show", path).status == 0
    from dataclasses import replace

    from tensorstow.ir.codec import digest

    file = read_plan(planned)
    box = replace(file.machine, fingerprint="0" * 64)
    write_plan(replace(file, machine=box, plan=replace(file.plan, machine=digest(box))), path)
    refused(cli("run", path), "0000000000", "not this box")


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_plan_that_was_edited_by_hand(cli: Cli, planned: Path) -> None:
    def smaller(document: Any) -> None:
        document["body"]["plan"]["residencies"][0]["offset"] += 64

    edit(planned, smaller)
    for command in ("run", "show"):
        refused(cli(command, planned), "plan.json", "changed after it was written", "plan the model again")


def test_a_plan_whose_digest_was_made_anew(cli: Cli, planned: Path) -> None:
    """Who forges the digest too is caught by the checker."""
    from dataclasses import replace

    file = read_plan(planned)
    moved = tuple(replace(r, offset=0) for r in file.plan.residencies)
    write_plan(replace(file, plan=replace(file.plan, residencies=moved)), planned)
    refused(cli("run", planned), "plan.json", "share addresses", "plan the model again")
    said = cli("show", planned)
    assert said.status == 0
    assert "violation" in said.out


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"schema": "tensorstow-plan/99"}', "\0\1", "NaN"])
def test_what_is_no_plan(cli: Cli, tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    for command in ("run", "show"):
        refused(cli(command, path), str(path))


def test_a_plan_that_is_truncated_missing_or_a_model(cli: Cli, planned: Path, copied: Path, tmp_path: Path) -> None:
    os.truncate(planned, planned.stat().st_size // 2)
    for command in ("run", "show"):
        refused(cli(command, planned), "plan.json", "not a JSON file")
        refused(cli(command, tmp_path / "absent.json"), "absent.json", "No such file")
        refused(cli(command, tmp_path), str(tmp_path), "directory")
        refused(cli(command, copied), "mlp.onnx")
