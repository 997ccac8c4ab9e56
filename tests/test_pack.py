"""`tensorstow pack`: its contract, banks, starts, explanations, and numbers at the edge."""

from __future__ import annotations

import csv
import sys
from importlib import import_module
from pathlib import Path

import pytest

from .conftest import Cli

PACK_KEYS = {"buffers", "load_bound", "peak", "capacity", "status", "seconds", "method"}


@pytest.fixture
def buffers(tmp_path: Path) -> Path:
    path = tmp_path / "buffers.csv"
    path.write_text("id,lower,upper,size\na,0,9,2\nb,0,4,3\nc,3,9,6\nd,5,9,5\n")
    return path


def offsets(path: Path) -> dict[str, int]:
    return {row["id"]: int(row["offset"]) for row in csv.DictReader(path.open())}


def test_what_does_not_fit_is_named(cli: Cli, buffers: Path) -> None:
    said = cli("pack", buffers, "--capacity", "10", "--json")
    assert said.status == 3
    assert said.json["status"] == "infeasible"
    for words in ("13 bytes are live", "capacity is 10", "'c', 'd'", "--capacity 13 or more"):
        assert words in " ".join(said.err.split())


def test_a_start_is_kept(cli: Cli, buffers: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("id,offset\na,11\nb,0\nc,5\nd,0\nelse,3\n")
    assert cli("pack", buffers, "--start", old, "-o", new, "--json").json["status"] == "optimal"
    assert offsets(new) == {"a": 11, "b": 0, "c": 5, "d": 0}
    again = tmp_path / "again.csv"
    assert cli("pack", new, "--start", new, "-o", again).status == 0
    assert offsets(again) == offsets(new)
    old.write_text("id,offset\na,-1\n")
    refused = cli("pack", buffers, "--start", old)
    assert refused.status == 2
    assert "below 0" in refused.err
    assert cli("pack", buffers, "--start", buffers).status == 2


def test_a_start_beyond_all_memory_is_refused(cli: Cli, buffers: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    for far in (10**20, 2**63):
        old.write_text(f"id,offset\na,0\nb,{far}\n")
        refused = cli("pack", buffers, "--start", old)
        assert refused.status == 2
        for words in ("line 3", str(far), "largest 64-bit number"):
            assert words in " ".join(refused.err.split())
    old.write_text(f"id,offset\na,{2**63 - 1}\nb,{2**63 - 1}\nc,0\nd,6\n")
    assert cli("pack", buffers, "--start", old, "-o", new, "--json").json["peak"] == 13
    assert {name: offsets(new)[name] for name in "cd"} == {"c": 0, "d": 6}


def test_banks(cli: Cli, buffers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    said = cli("pack", buffers, "--banks", "2", "--capacity", "8", "-o", out, "--json")
    assert said.status == 0
    assert max(said.json["banks"]) == said.json["peak"] <= 8
    assert {row["bank"] for row in csv.DictReader(out.open())} == {"0", "1"}
    assert cli("pack", buffers, "--banks", "2", "--capacity", "6").status == 3
    assert cli("pack", buffers, "--banks", "2", "--start", out).status == 2
    roomy = cli("pack", buffers, "--banks", "2", "--capacity", "99", "--json")
    assert roomy.json["status"] in {"optimal", "feasible"}
    assert roomy.json["method"].startswith("first-fit")


def test_integers_stay_exact(cli: Cli, buffers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    odd = 2**60 + 1
    buffers.write_text(f"id,lower,upper,size\na,-5,3,{odd}\nb,0,4,{odd + 1}\nc,1,9,0\nd,3,9,3\n")
    said = cli("pack", buffers, "-o", out, "--json")
    assert said.json["peak"] == said.json["load_bound"] == 2 * odd + 1
    assert sorted(offsets(out).values())[-1] in (odd, odd + 1)
    buffers.write_text(f"id,lower,upper,size\na,0,3,{2**63}\n")
    refused = cli("pack", buffers)
    assert refused.status == 2
    for words in ("line 2", "'a'", str(2**63), "larger unit"):
        assert words in " ".join(refused.err.split())


def test_lives_longer_than_64_bits_count(cli: Cli, buffers: Path) -> None:
    buffers.write_text(f"id,lower,upper,size\na,{-9 * 10**18},{9 * 10**18},4\nb,0,5,4\n")
    assert cli("pack", buffers, "--json").json["peak"] == 8


def test_no_pairs_are_compared_where_all_is_right(cli: Cli, buffers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quadratic checker names what is wrong; it takes a while for many buffers."""
    calls: list[object] = []

    def counting(*checked: object) -> tuple[str, ...]:
        calls.append(checked)
        return ()

    import_module("tensorstow.pack")
    for name, module in list(sys.modules.items()):
        if name.startswith("tensorstow.") and hasattr(module, "check_packing"):
            monkeypatch.setattr(module, "check_packing", counting)
    assert cli("pack", buffers).status == 0
    assert cli("pack", buffers, "--banks", "2").status == 0
    assert not calls


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("\ufeffid,lower,upper,size\na,0,3,4\nb,2,5,4\n", ["a,0,3,4", "b,2,5,4"]),
        ("id,lower,upper,size\na,0,3,4,\nb,2,5,4,,\n", ["a,0,3,4", "b,2,5,4"]),
        ("id,lower,upper,size\r\na,0,3,4\r\n\r\nb,2,5,4\r\n", ["a,0,3,4", "b,2,5,4"]),
        (
            'id,lower,upper,size,note\n"a, or ""A""",0,3,4,"x\ny"\nb,2,5,4\n',
            ['"a, or ""A""",0,3,4,"x', 'y"', "b,2,5,4,"],
        ),
    ],
)
def test_ways_to_write_a_table(cli: Cli, buffers: Path, tmp_path: Path, content: str, rows: list[str]) -> None:
    buffers.write_bytes(content.encode())
    out = tmp_path / "out.csv"
    said = cli("pack", buffers, "-o", out, "--json")
    assert (said.status, said.json["buffers"], said.json["peak"]) == (0, 2, 8)
    lines = out.read_text().splitlines()
    assert lines[0].startswith("id,lower,upper,size")
    assert all(line.startswith(row) for line, row in zip(lines[1:], rows, strict=True))
    assert {frozenset(row) for row in csv.DictReader(out.open())} == {frozenset(lines[0].split(","))}
    assert "" not in lines[0].split(",")


def test_pack(cli: Cli, tmp_path: Path) -> None:
    path, out = tmp_path / "buffers.csv", tmp_path / "out.csv"
    path.write_text("id,lower,upper,size,note\na,0,3,4,x\nb,2,5,4,y\nc,4,9,8,\n")
    said = cli("pack", path, "-o", out, "--json")
    assert said.status == 0
    assert set(said.json) == PACK_KEYS
    assert said.json["buffers"] == 3
    assert said.json["peak"] == said.json["load_bound"] == 12
    assert said.json["status"] == "optimal"
    rows = list(csv.DictReader(out.open()))
    assert [r["note"] for r in rows] == ["x", "y", ""]
    a, b, c = (int(r["offset"]) for r in rows)
    assert a + 4 <= b or b + 4 <= a
    assert b + 4 <= c or c + 8 <= b
    assert cli("pack", path, "--capacity", "12", "--json").json["status"] in {"optimal", "feasible"}
    tight = cli("pack", path, "--capacity", "11", "-o", tmp_path / "no.csv", "--json")
    assert tight.status == 3
    assert tight.json["status"] == "infeasible"
    assert tight.json["peak"] is None
    assert not (tmp_path / "no.csv").exists()
    assert cli("pack", path).status == 0
    path.write_text("id,lower,upper,size\n")
    assert cli("pack", path, "--json").json["peak"] == 0
