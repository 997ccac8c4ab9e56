"""`tensorstow experts`: the JSON object of the contract, the tables, and one clear error for each wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tensorstow.planner.experts.policies import POLICIES
from tensorstow.planner.experts.trace import write_trace

from .conftest import Cli
from .planner.test_experts import GOOD, made_up
from .test_page import unpacked


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.npz"
    write_trace(made_up(), path)
    return path


def test_the_json_object(cli: Cli, trace: Path) -> None:
    said = cli("experts", trace, "--experts", 8, "--cache", "3,5", "--warm-prompts", 2, "--window", "4,20", "--json")
    assert said.status == 0, said.err
    assert said.err == ""
    facts = said.json
    assert (facts["layers"], facts["experts"], facts["top_k"], facts["tokens"]) == (3, 8, 2, 240)
    assert {(row["policy"], row["cache"]) for row in facts["rows"]} == {(p, c) for p in POLICIES for c in (3, 5)}
    for row in facts["rows"]:
        assert {"policy", "cache", "hit_rate", "gap_closed"} <= set(row)
        assert 0 <= row["hit_rate"] <= 1
    assert set(facts["srp"]) == {"4", "20"} == set(facts["sch"])
    assert set(facts["sch"]["4"]) == {"3", "5"}
    assert all(0 < value <= 1 for value in facts["srp"].values())
    assert "stall" not in facts


def test_the_same_again(cli: Cli, trace: Path) -> None:
    runs = [cli("experts", trace, "--experts", 8, "--cache", 4, "--json").json for _ in range(2)]
    for facts in runs:
        for row in facts["rows"]:
            del row["ns_per_event"]
    assert runs[0] == runs[1]


def test_tables_name_what_they_show(cli: Cli, trace: Path) -> None:
    said = cli("experts", trace, "--experts", 8, "--cache", 4, "--policies", "lru,recall,belady")
    assert said.status == 0
    for words in ("240 tokens of 6 prompts, 3 layers of 8 experts, 2 a token", "recall", "knows the future", "SRP"):
        assert words in said.out
    assert "lfu" not in said.out


def test_time_is_replayed_on_demand(cli: Cli, trace: Path) -> None:
    said = cli(
        "experts", trace, "--experts", 8, "--cache", 4, "--policies", "lru", "--load-ms", 0.5, "--layer-ms", 0.2,
        "--timed-tokens", 60, "--json",
    )  # fmt: skip
    rows = {row["schedule"]: row for row in said.json["stall"]}
    assert said.json["stall_tokens"] == 60
    assert rows["bound"]["stall_ms"] <= rows["known routes"]["stall_ms"] <= rows["lru on demand"]["stall_ms"]


def test_time_with_caches_that_are_emptied(cli: Cli, trace: Path) -> None:
    words = ("experts", trace, "--experts", 8, "--cache", 8, "--policies", "lru", "--load-ms", 0.5, "--json")
    kept, emptied = (
        {row["schedule"]: row for row in cli(*words, *more).json["stall"]}["lru on demand"]
        for more in ((), ("--cold",))
    )
    assert emptied["demanded"] > kept["demanded"]


def test_numbers_beyond_the_trace_mean_all_of_it(cli: Cli, trace: Path) -> None:
    """A cache larger than a layer, and a window longer than any prompt."""
    words = ("experts", trace, "--experts", 8, "--json", "--load-ms", 0.5, "--timed-tokens", 40, "--seed", -1)
    huge = 10**20
    most, beyond = (cli(*words, "--cache", c, "--window", f"{w},4") for c, w in ((16, 1000), (huge, huge)))
    assert beyond.status == 0, beyond.err
    rates = [
        {row["policy"]: (row["hit_rate"], row["loads_per_token"]) for row in s.json["rows"]} for s in (most, beyond)
    ]
    assert rates[0] == rates[1]
    assert {row["cache"] for row in beyond.json["rows"]} == {huge}
    assert beyond.json["srp"][str(huge)] == 0.0
    assert beyond.json["sch"][str(huge)][str(huge)] == most.json["sch"]["1000"]["16"]
    waits = [{row["schedule"]: row["stall_ms"] for row in s.json["stall"]} for s in (most, beyond)]
    assert waits[0] == pytest.approx(waits[1])


def test_a_cache_below_one_token_is_told_what_would_do(cli: Cli, trace: Path) -> None:
    said = cli("experts", trace, "--experts", 8, "--cache", "4,1", "--json")
    assert said.status == 3
    assert said.json["exit_status"] == 3
    assert "give --cache 2 or more" in said.json["error"]


def test_sizes_are_bytes(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "sized.npz"
    write_trace(made_up(sizes=True), path)
    refused = cli("experts", path, "--experts", 8, "--cache", "9", "--json")
    assert refused.status == 3
    least = refused.json["smallest_nbytes"]
    said = cli("experts", path, "--experts", 8, "--cache", least, "--policies", "lru,belady", "--json")
    assert said.status == 0
    assert said.json["rows"][0]["cache"] == least
    (bound,) = said.json["least"]
    assert bound["complete"]
    assert 0 < bound["nbytes_per_token"] <= min(row["loads_per_token"] for row in said.json["rows"])
    words = ("experts", path, "--experts", 8, "--cache", least, "--policies", "lru,belady")
    shown = " ".join(cli(*words).out.split())
    assert "LRU to bound" in shown
    assert "no policy that loads on demand loads less" in shown


def test_pages_and_pictures_show_what_the_object_says(cli: Cli, trace: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "e.html", tmp_path / "e.svg"
    said = cli(
        "experts", trace, "--experts", 8, "--cache", "3,5", "--policies", "lru,decayed,belady", "--html", page,
        "--picture", picture, "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    figures = json.loads(unpacked(page.read_text(), "figures"))
    rates = {(row["policy"], row["cache"]): row["hit_rate"] for row in said.json["rows"]}
    drawn = {
        (line["name"], x): y for line in figures["hits"]["data"] for x, y in zip(line["x"], line["y"], strict=True)
    }
    assert drawn == rates
    srp = next(line for line in figures["local"]["data"] if line["name"] == "SRP")
    assert {str(m): y for m, y in zip(srp["x"], srp["y"], strict=True)} == {
        m: value for m, value in said.json["srp"].items() if int(m) in srp["x"]
    }
    assert len(figures["used"]["data"]) == 3
    assert picture.read_bytes().startswith(b"<?xml")
    refused = cli("experts", trace, "--experts", 8, "--cache", 4, "--picture", tmp_path / "e.gif")
    assert (refused.status, (tmp_path / "e.gif").exists()) == (2, False)


WRONG = {
    "experts": (("--experts", "4", "--cache", "4"), "give --experts 8 or more"),
    "cache": (("--experts", "8", "--cache", "4,many"), "whole numbers of experts"),
    "policy": (("--experts", "8", "--cache", "4", "--policies", "fifo"), "no policy is called 'fifo'; there are: lru"),
    "profile": (("--experts", "8", "--cache", "4", "--policies", "pinned"), "--warm-prompts 1 or more"),
    "warm": (("--experts", "8", "--cache", "4", "--warm-prompts", "6"), "the trace has 6"),
    "window": (("--experts", "8", "--cache", "4", "--window", "0"), "whole numbers of tokens above 0"),
    "load": (("--experts", "8", "--cache", "4", "--policies", "lru", "--load-ms", "0"), "give times above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str, cli: Cli, trace: Path) -> None:
    arguments, words = WRONG[case]
    said = cli("experts", trace, *arguments, "--json")
    assert said.status == 2
    assert words in said.json["error"]
    assert said.err.count("error:") == 1


def test_wrong_files(cli: Cli, tmp_path: Path) -> None:
    missing = cli("experts", tmp_path / "none.npz", "--experts", 8, "--cache", 4, "--json")
    assert missing.status == 2
    assert "no such file" in missing.json["error"]
    np.savez(tmp_path / "t.npz", experts=GOOD)
    said = cli("experts", tmp_path / "t.npz", "--experts", 8, "--cache", 4, "--policies", "gates", "--json")
    assert said.status == 2
    assert "the trace has none" in said.json["error"]
