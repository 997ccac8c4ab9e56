"""Routing traces: the file, the recorder, the figures, and replays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorstow.ir.errors import InfeasibleError, InputError
from tensorstow.planner.experts import analysis as experts_analysis
from tensorstow.planner.experts import policies as experts_policies
from tensorstow.planner.experts.analysis import layer_summaries, sch, window_summary
from tensorstow.planner.experts.policies import POLICIES, chosen_policies
from tensorstow.planner.experts.record import Recorder
from tensorstow.planner.experts.replay import Row, least_loads, replay_all
from tensorstow.planner.experts.trace import Trace, read_trace, write_trace

DATA = Path(os.environ.get("TENSORSTOW_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROUTING = DATA / "routing" / "gptoss20b_decode.npz"


def made_up(seed: int = 0, *, prompts: int = 6, tokens: int = 40, sizes: bool = False) -> Trace:
    """Prompts of two classes, each with experts that it prefers."""
    rng = np.random.default_rng(seed)
    kinds = tuple("ab"[p % 2] for p in range(prompts))
    prefer = {k: rng.permuted(np.tile(np.arange(8), (3, 1)), axis=1) for k in "ab"}
    ids = np.empty((prompts * tokens, 3, 2), np.int32)
    for t in range(len(ids)):
        for layer in range(3):
            ranks = rng.choice(8, 2, replace=False, p=np.array([8, 7, 6, 1, 1, 1, 1, 1]) / 26)
            ids[t, layer] = prefer[kinds[t // tokens]][layer][ranks]
    offsets = np.arange(prompts + 1, dtype=np.int64) * tokens
    nbytes = rng.integers(5, 9, (3, 8)).astype(np.int64) if sizes else None
    return Trace(ids, 8, offsets, kinds, rng.random(ids.shape, dtype=np.float32), nbytes)


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = made_up(sizes=True)
    trace.ids[0, 0, 1] = -1
    write_trace(trace, tmp_path / "t.npz")
    again = read_trace(tmp_path / "t.npz", 8)
    assert np.array_equal(again.ids, trace.ids)
    assert again.offsets.tolist() == trace.offsets.tolist()
    assert again.classes == trace.classes
    assert again.sizes is not None and trace.sizes is not None and np.array_equal(again.sizes, trace.sizes)
    assert again.gates is not None and trace.gates is not None
    assert float(np.abs(again.gates - trace.gates).max()) <= 0.5 / 255 + 1e-6
    with np.load(tmp_path / "t.npz") as file:
        assert file["experts"].dtype == np.uint8


def written(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


GOOD = np.array([[[0, 1], [2, 3]], [[4, 1], [2, 0]]], np.uint8)

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "id": (
        {"experts": GOOD + 5},
        "token 0 asks layer 1 for expert 8, and 8 experts end at 7; take a trace of this model",
    ),
    "negative": ({"experts": GOOD.astype(np.int16) - 2}, "asks layer 0 for expert -2; experts are numbered from 0"),
    "all negative": ({"experts": np.full((2, 1, 1), -2, np.int8)}, "token 0 asks layer 0 for expert -2; experts are"),
    "twice": ({"experts": np.minimum(GOOD, 1)}, "twice for expert 1"),
    "shape": ({"experts": GOOD[0]}, "must be whole numbers [tokens, layers, top_k], every layer as wide"),
    "floats": ({"experts": GOOD * 1.5}, "is float64"),
    "ragged": ({"experts": np.array([[1, 2], [3]], dtype=object)}, "layers of different width"),
    "nothing": ({"experts": GOOD[:0]}, "there is nothing in it"),
    "missing": ({"ids": GOOD}, "there is no array 'experts' [tokens, layers, top_k]; the file holds ids"),
    "empty prompt": ({"experts": GOOD, "offsets": np.array([0, 1, 1, 2])}, "prompt 1 is empty: tokens 1 to 1"),
    "backwards": ({"experts": GOOD, "offsets": np.array([0, 2, 1, 2])}, "prompt 1 ends before it begins"),
    "short": ({"experts": GOOD, "offsets": np.array([0, 1])}, "runs from 0 to 1; it must run from 0 to 2"),
    "classes": ({"experts": GOOD, "dataset": np.array(["a", "b"])}, "there are 1 prompts"),
    "gates": ({"experts": GOOD, "gates": np.ones((2, 2), np.float32)}, "one gate an expert"),
    "gate": ({"experts": GOOD, "gates": -np.ones(GOOD.shape, np.float32)}, "negative or not a number"),
    "sizes": ({"experts": GOOD, "expert_nbytes": np.ones((2, 7), np.int64)}, "give whole numbers [2, 8]"),
    "size": ({"experts": GOOD, "expert_nbytes": np.zeros((2, 8), np.int64)}, "at least one byte"),
    "wrapping": ({"experts": GOOD, "expert_nbytes": np.full((2, 8), 1 << 63, np.uint64)}, f"adds up to {1 << 67}"),
    "sum": ({"experts": GOOD, "expert_nbytes": np.full((2, 8), 1 << 60, np.int64)}, f"adds up to {1 << 64} bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_trace_is_told_once_and_clearly(case: str, tmp_path: Path) -> None:
    arrays, words = WRONG[case]
    with pytest.raises(InputError) as caught:
        read_trace(written(tmp_path / "t.npz", **arrays), 8)
    assert words in str(caught.value)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "none.npz", 8)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not at all")
    with pytest.raises(InputError, match="not an npz archive"):
        read_trace(tmp_path / "x.npz", 8)
    (tmp_path / "words.npz").write_text("hello")
    with pytest.raises(InputError, match="not an npz archive; write it with"):
        read_trace(tmp_path / "words.npz", 8)
    np.save(tmp_path / "bare.npy", GOOD)
    with pytest.raises(InputError, match="one bare array"):
        read_trace(tmp_path / "bare.npy", 8)
    with pytest.raises(InputError, match="at least one expert"):
        read_trace(written(tmp_path / "t.npz", experts=GOOD), 0)


def test_the_greatest_number_stands_for_no_expert(tmp_path: Path) -> None:
    ids = GOOD.copy()
    ids[1, 1, 1] = 255
    path = written(tmp_path / "t.npz", experts=ids)
    assert read_trace(path, 8).ids[1, 1].tolist() == [2, -1]
    assert read_trace(path, 256).ids[1, 1].tolist() == [2, 255]


def test_a_recorder_orders_by_gates_and_joins_calls() -> None:
    recorder = Recorder(layers=2, experts=8, top_k=2)
    recorder.begin("left out")
    recorder.begin("code")
    for ids, gates in (([[1, 2], [3, 4]], [[0.2, 0.8], [0.9, 0.1]]), ([[5, 6]], [[0.5, 0.4]])):
        for layer in range(2):
            recorder.add(layer, np.array(ids) + layer, np.array(gates))
    trace = recorder.trace()
    assert trace.ids[:, 0].tolist() == [[2, 1], [3, 4], [5, 6]]
    assert trace.ids[:, 1].tolist() == [[3, 2], [4, 5], [6, 7]]
    assert trace.classes == ("code",)
    assert trace.gates is not None and trace.gates[0, 0].tolist() == pytest.approx([0.8, 0.2])  # pyright: ignore[reportUnknownMemberType]
    recorder.add(0, np.array([[1, 2]]), np.array([[0.5, 0.5]]))
    with pytest.raises(InputError, match="layers saw \\[3, 4\\] tokens"):
        recorder.trace()
    with pytest.raises(InputError, match="layer 2"):
        recorder.add(2, np.array([[1]]))
    with pytest.raises(InputError, match="nothing was recorded"):
        Recorder(1, 2, 1).trace()


def test_policies_are_chosen_by_what_a_trace_offers() -> None:
    trace = made_up()
    bare = Trace(trace.ids, 8, trace.offsets, trace.classes)
    assert {p.name for p in chosen_policies(None, trace, 1)} == set(POLICIES)
    assert {"gates", "pinned", "profiles"} == set(POLICIES) - {p.name for p in chosen_policies(None, bare, 0)}
    for names, words in (
        ("gates", "has none"),
        ("lru,nope", "'nope'"),
        ("pinned", "--warm-prompts 1"),
        (",", "names no"),
    ):
        with pytest.raises(InputError, match=words):
            chosen_policies(names, bare, 0)


def test_rows_of_a_replay() -> None:
    trace = made_up()
    rows = replay_all(trace, (2, 4, 8), chosen_policies(None, trace, 2), warm_prompts=2)
    by = {(row.policy, row.cache): row for row in rows}
    assert len(by) == len(POLICIES) * 3
    for cache in (4, 8):
        assert by["lru", cache].gap_closed == 0
        assert by["belady", cache].of_belady == 1
    assert by["belady", 4].gap_closed == 1
    # At a capacity of one set nobody has a choice, but those who prefetch.
    assert len({row.hit_rate for row in rows if row.cache == 2 and not row.ahead}) == 1
    # Warm, and all experts fit: nothing is missed.
    assert by["lru", 8].hit_rate == 1
    # Each class has its own favourites: a profile of the class beats one of all.
    assert by["profiles", 4].hit_rate > by["pinned", 4].hit_rate


def test_warming_and_cold_starts() -> None:
    trace = made_up()
    lru = chosen_policies("lru", trace, 0)
    once = replay_all(trace, (4,), lru)[0].hit_rate
    assert replay_all(trace, (4,), lru, cold=True)[0].hit_rate < once
    with pytest.raises(InputError, match="the trace has 6"):
        replay_all(trace, (4,), lru, warm_prompts=6)
    with pytest.raises(InfeasibleError, match="give --cache 2 or more"):
        replay_all(trace, (1,), lru)


def test_sizes_make_caches_of_bytes() -> None:
    trace = made_up(sizes=True)
    least = int(trace.requests().least_capacity().max())
    with pytest.raises(InfeasibleError) as caught:
        replay_all(trace, (least - 1,), chosen_policies("lru", trace, 0))
    assert caught.value.smallest_nbytes == least
    rows = replay_all(trace, (least, least + 9), chosen_policies("lru,decayed,recall,belady", trace, 0))
    assert all(0 < row.hit_rate < 1 for row in rows)


def test_what_must_be_loaded_of_experts_that_differ_in_size() -> None:
    trace = made_up(sizes=True)
    assert trace.sizes is not None
    cache = int(trace.requests().least_capacity().max()) + 9
    policies = chosen_policies("lru,decayed,recall,belady", trace, 0)
    for warm, cold in ((0, False), (0, True), (2, False), (2, True)):
        (least,) = least_loads(trace, (cache,), warm_prompts=warm, cold=cold)
        assert least.complete
        rows = {row.policy: row for row in replay_all(trace, (cache,), policies, warm_prompts=warm, cold=cold)}
        assert 0 < least.nbytes_per_token <= min(row.loads_per_token for row in rows.values())
        assert rows["lru"].gap_closed == 0
        assert 0.5 < rows["belady"].gap_closed <= 1  # of bytes, on the way to the bound: its rule is a heuristic here
    (late,) = least_loads(trace, (cache,), time_limit_s=0.0)
    assert not late.complete
    assert late.nbytes_per_token == trace.sizes.sum() / trace.tokens  # of each the first use
    assert least_loads(made_up(), (4,)) == ()


def timeless(rows: tuple[Row, ...]) -> list[Row]:
    return [replace(row, ns_per_event=0.0) for row in rows]


def test_experts_that_nobody_asks_for_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = made_up(sizes=True)
    assert trace.sizes is not None
    sizes = np.full((3, 20_000), 7, np.int64)
    sizes[:, 5 : 5 + 8 * 2_000 : 2_000] = trace.sizes
    huge = replace(trace, ids=trace.ids * 2_000 + 5, experts=20_000, sizes=sizes)
    assert huge.of_used().experts == 8
    policies = chosen_policies(None, huge, 2)
    assert policies == chosen_policies(None, trace, 2)
    plain, rows = (timeless(replay_all(t, (20,), policies, warm_prompts=2)) for t in (trace, huge))
    assert rows == plain
    assert [layer.by_layer_before for layer in layer_summaries(huge)] == [None] * 3  # 4.8 GB of pairs
    assert window_summary(huge.of_used(), 10) == window_summary(trace, 10)
    monkeypatch.setattr(experts_policies, "MOST_PAIRS_NBYTES", 100)
    monkeypatch.setattr(experts_analysis, "MOST_PAIRS_NBYTES", 100)
    assert {p.name for p in policies} - {p.name for p in chosen_policies(None, trace, 2)} == {"next-layer"}
    with pytest.raises(InputError, match="'next-layer' counts pairs of the 8 experts"):
        chosen_policies("lru,next-layer", trace, 0)


def test_figures_of_layers_and_windows() -> None:
    trace = made_up()
    layers = layer_summaries(trace)
    assert [layer.layer for layer in layers] == [0, 1, 2]
    assert all(layer.used == 8 and 3 < layer.effective <= 8 for layer in layers)
    window = window_summary(trace, 10)
    assert window.windows == 6 * (40 - 10 + 1)
    assert 0 < window.srp < 1 and len(window.srp_layers) == 3
    assert 2 < window.working_set < 8
    assert window_summary(trace, 41).windows == 0
    assert window_summary(trace, 1 << 70).srp == 0.0
    assert sch(trace, 1 << 70, 4) == sch(trace, trace.tokens, 4)
    assert sch(trace, 8, 2) < sch(trace, 8, 4) <= 1


@pytest.fixture(scope="module")
def decoding() -> Trace:
    """6,000 tokens of gpt-oss-20b, of a data set that nothing was tuned on."""
    if not ROUTING.exists():
        pytest.skip(f"no {ROUTING.name} under {DATA}; set TENSORSTOW_DATA to the folder that holds routing/")
    trace = read_trace(ROUTING, 32)
    prompts = [p for p, kind in enumerate(trace.classes) if kind == "gpqa_main"]
    return trace.take(prompts[:14])


def test_real_routing_is_cached_as_well_as_aimed_at(decoding: Trace) -> None:
    rows = replay_all(decoding, (8, 16), chosen_policies("lru,decayed,recall,belady", decoding, 0))
    by = {(row.policy, row.cache): row for row in rows}
    assert by["recall", 8].gap_closed >= 0.5 > by["decayed", 8].gap_closed
    assert by["recall", 8].of_belady >= 0.93
    assert by["recall", 16].gap_closed >= 0.45 > by["decayed", 16].gap_closed
