from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.signature import Argument, Request, Signature, TensorForm, TorchName, write_signature
from tensorstow.runtime import torch_rates, torch_rates_calls
from tensorstow.runtime.torch_rates import Measured, measure
from tensorstow.runtime.torch_rates_cache import cache_path, read_known
from tensorstow.runtime.torch_rates_calls import Bench, Pool
from tensorstow.runtime.torch_rates_python import UnrecordableError, module_call_ns, python_ns

MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))


def dense(*shape: int, dtype: str = "float32", weight: bool = False) -> TensorForm:
    strides = torch.empty(shape, device="meta").stride()
    return TensorForm(dtype, shape, tuple(strides), weight)


def call(op: str, *args: Argument, **kwargs: Argument) -> Signature:
    return write_signature(op, args, kwargs)


def linear(rows: int, width: int) -> Signature:
    return call("aten.linear.default", dense(rows, width), dense(width, width, weight=True))


def take(signatures: Sequence[Signature], budget_s: float = 20.0, threads: int = 1) -> Measured:
    return measure([Request(s, 1000, 3, 1 << 16) for s in signatures], threads=threads, budget_s=budget_s)


CALLS = {
    "view": call("aten.view.default", dense(4, 6), (6, 4)),
    "transpose": call("aten.transpose.int", dense(4, 6, weight=True), 0, 1),
    "slice": call("aten.slice.Tensor", dense(4, 6), 1, 2, 9223372036854775807),
    "in place": call("aten.mul_.Tensor", dense(64, 64), 0.01),
    "in place on a weight": call("aten.add_.Tensor", dense(8, weight=True), dense(8)),
    "no memory": call("aten.add.Tensor", TensorForm("float32", (4, 1024), (0, 1)), 1),
    "empty": call("aten.add.Tensor", dense(0, 4), dense(4)),
    "scalar": call("aten.add.Tensor", dense(), 1.0),
    "cat": call("aten.cat.default", (dense(2, 3), dense(2, 5)), -1),
    "dtype": call("aten.to.dtype", dense(8), TorchName("bfloat16")),
    "made": call("aten.arange.default", 7, dtype=TorchName("int64")),
    "infinite": call("aten.masked_fill.Scalar", dense(4, 4), dense(4, 4, dtype="bool"), float("-inf")),
    "index": call("aten.index.Tensor", dense(5, 4), (None, dense(3, dtype="int64"))),
    "gather": call("aten.gather.default", dense(5, 4), 1, dense(5, 2, dtype="int64")),
    "scatter": call("aten.index_copy.default", dense(5, 4), 0, dense(1, dtype="int64"), dense(1, 4)),
    "embedding": call("aten.embedding.default", dense(1000, 16, weight=True), dense(2, 3, dtype="int64")),
    "several results": call("aten.topk.default", dense(2, 9), 2),
    "attention": call(
        "aten.scaled_dot_product_attention.default",
        *(dense(1, 2, 5, 8) for _ in range(3)),
        dense(1, 1, 5, 5, dtype="bool"),
        scale=0.125,
    ),
    "half": call("aten.linear.default", dense(2, 8, dtype="bfloat16"), dense(4, 8, dtype="bfloat16", weight=True)),
    "integer weight": call("aten.add.Tensor", dense(300, dtype="int64", weight=True), 1),
    "random": call("aten.dropout.default", dense(4, 4), 0.5, True),
}


def test_all_kinds_of_calls_are_measured() -> None:
    found = take(list(CALLS.values()))
    assert not found.skipped
    assert not found.unreached
    assert set(found.times) == set(CALLS.values())
    # Between a dispatch and a disturbed one: a slip of a thousand would leave this range.
    assert all(50 < ns < 50_000_000 for ns in found.times.values())


def test_more_work_takes_longer() -> None:
    small, large = linear(64, 256), linear(64, 1024)
    found = take([small, large])
    assert found.times[large] > 4 * found.times[small]


def test_what_cannot_be_made_up_is_skipped_and_says_why() -> None:
    absent, refused, unknown = (
        call("aten.frobnicate.default", dense(2)),
        call("aten.view.default", dense(4, 6), (5, 5)),
        call("aten.neg.default", dense(2, dtype="float7")),
    )
    reshaping = call("aten.unsqueeze_.default", dense(2), 0)
    grouped = call(
        "aten._grouped_mm.default", dense(4, 8), dense(2, 8, 8, weight=True), dense(2, dtype="int32"), None, None
    )
    found = take([absent, refused, unknown, reshaping, grouped, "no signature", linear(1, 8)])
    assert "where its groups end" in found.skipped[grouped]
    assert "changes the shape" in found.skipped[reshaping]
    assert set(found.times) == {linear(1, 8)}
    assert "no operator 'aten.frobnicate.default'" in found.skipped[absent]
    assert "shape '[5, 5]' is invalid" in found.skipped[refused]
    assert "no dtype 'float7'" in found.skipped[unknown]
    assert "not an operator's signature" in found.skipped["no signature"]


def test_a_second_time_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = call("aten.view.default", dense(4, 6), (5, 5))
    found = take([linear(1, 8), bad])

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(torch_rates, "_Session", refuse)
    assert take([linear(1, 8), bad]) == found
    with pytest.raises(AssertionError, match="measured again"):
        take([linear(1, 8)], threads=2)  # other threads, other times
    with pytest.raises(AssertionError, match="measured again"):
        take([linear(1, 8), linear(1, 9)])


@pytest.mark.parametrize("damage", ["cut", "changed", "no JSON", "other schema", "other types"])
def test_a_damaged_cache_is_made_again(damage: str) -> None:
    take([linear(1, 8)])
    path = cache_path(1)
    text = path.read_text()
    ns = read_known(path).times[linear(1, 8)]
    wrong = json.loads(text)
    wrong["body"]["times"] = [ns]
    path.write_text(
        {
            "cut": text[:-9],
            "changed": text.replace(str(ns), str(ns + 1)),
            "no JSON": "\0\1",
            "other schema": text.replace("rates/2", "rates/1"),
            "other types": json.dumps(wrong),
        }[damage]
    )
    assert not read_known(path).times
    assert take([linear(1, 8)]).times
    assert read_known(path).times


def test_measuring_adds_to_what_is_known() -> None:
    take([linear(1, 8)])
    take([linear(1, 9)])
    assert set(read_known(cache_path(1)).times) == {linear(1, 8), linear(1, 9)}


def test_a_budget_goes_to_the_most_expensive_first() -> None:
    cheap, dear = linear(1, 8), linear(256, 512)
    hopeless = linear(1, 16)
    requests = [Request(cheap, 10, 1, 1), Request(dear, 100, 1, 1), Request(hopeless, 10**15, 1, 1)]
    found = measure(requests, threads=1, budget_s=10)
    assert set(found.times) == {cheap, dear}
    assert found.unreached == (hopeless,)  # by its formula it takes days
    order: list[Signature] = []
    original = Bench.prepare

    def noting(self: Bench, weights: Pool, activations: Pool) -> None:
        order.append(self.call.op if self.call.tensors[0].shape[0] != 256 else "dear")
        original(self, weights, activations)

    cache_path(1).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "prepare", noting)
        measure(requests, threads=1, budget_s=10)
    assert order[0] == "dear"
    cache_path(1).unlink()
    assert measure(requests, threads=1, budget_s=0).unreached == (cheap, dear, hopeless)


def test_a_call_larger_than_memory_is_skipped_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    big = linear(1, 1024)
    with monkeypatch.context() as patch:
        patch.setattr(torch_rates, "available_nbytes", lambda: 3 * MIB)
        found = take([big])
    assert "3.0 MiB are available" in found.skipped[big]
    assert big in take([big]).times


def test_a_table_larger_than_memory_is_measured_by_the_rows_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 1 << 30
    table = call("aten.embedding.default", dense(rows, 4096, weight=True), dense(1, 3, dtype="int64"))
    assert table in take([table]).times


def test_in_place_calls_find_fresh_values() -> None:
    """A product by 0.01 that was not undone would be denormal after twenty calls."""
    bench = Bench(CALLS["in place"], 1)
    weights, activations = Pool(4096), Pool(bench.shared_nbytes)
    bench.prepare(weights, activations)
    for _ in range(100):
        bench.run()
    left = activations.cut(dense(64, 64))
    assert left.min() > 1e-5
    del left


def test_threads_are_put_back_and_bad_numbers_refused() -> None:
    before = torch.get_num_threads()
    take([linear(1, 8)], threads=before + 1)
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="0 threads"):
        take([linear(1, 8)], threads=0)


def test_progress_rises_to_one() -> None:
    heard: list[float] = []
    measure([Request(linear(1, 8), 1, 1, 1)], threads=1, budget_s=5, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_the_functions_of_modules_are_used_where_there_are_some() -> None:
    by_overload = {
        name: _chosen(signature) for name, signature in CALLS.items() if name in ("attention", "cat", "slice")
    }
    assert by_overload == {"attention": False, "cat": False, "slice": True}


def _chosen(signature: Signature) -> bool:
    bench = Bench(signature, 1)
    bench.prepare(Pool(MIB), Pool(max(1, bench.shared_nbytes)))
    return bench.by_overload


class Loops(nn.Module):
    """A pass with some Python around its one operator."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = 0
        for k in range(self.turns):
            total += k % 7
        if (x == 0).all():
            x = x + total
        return self.layer(x)


def test_python_of_a_pass_is_what_its_python_takes() -> None:
    quick, long = Loops(0), Loops(200_000)
    weight = long.layer.weight
    long_ns = python_ns(long, (torch.ones(2, 4),), {})
    assert 1_000_000 < long_ns < 1_000_000_000
    assert python_ns(quick, (), {"x": torch.ones(2, 4, device="meta")}) < long_ns / 4
    assert long.layer.weight is weight


def test_a_module_that_cannot_run_without_data_says_so() -> None:
    class Listing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + len(x.tolist())

    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while x.sum() > 0:
                x = x - 1
            return x

    class Counting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + 1 if self.calls % 2 else x * 2

    for module, words in ((Listing(), "without data"), (Endless(), "1000 times"), (Counting(), "same calls")):
        with pytest.raises(UnrecordableError, match=words):
            python_ns(module, (torch.ones(3),), {})


def test_a_call_of_a_module_takes_about_a_microsecond() -> None:
    assert 50 < module_call_ns() < 1_000_000


def test_a_pool_begins_again_at_its_end() -> None:
    pool = Pool(4096)
    first = pool.cut(dense(1000))
    second = pool.cut(dense(1000))
    assert first.data_ptr() == second.data_ptr()
    assert first.min() > 0
    assert torch_rates_calls.ALIGNMENT == 64
    assert first.data_ptr() % 64 == 0


def test_times_in_warm_memory_are_kept_beside_the_others() -> None:
    signature = call("aten.add.Tensor", dense(64, 64), 1)
    request = Request(signature, 1000, 3, 1 << 16)
    cold = measure([request], threads=1, budget_s=5.0)
    assert signature not in read_known(cache_path(1, warm=True)).times
    warm = measure([request], threads=1, budget_s=5.0, warm=True)
    assert read_known(cache_path(1)).times == cold.times
    assert read_known(cache_path(1, warm=True)).times == warm.times
