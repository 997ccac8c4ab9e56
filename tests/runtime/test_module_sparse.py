"""Tests of runtime/module/sparse*.py: bits of the whole matrix from rows of active neurons, and bytes as modelled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tensorstow.ir.errors import ExecutionError, InputError
from tensorstow.ir.machine import Link
from tensorstow.planner.pytorch import flash
from tensorstow.planner.pytorch.sparse import FeedForward, find_feed_forwards, sparse_cost, sparse_memory_nbytes
from tensorstow.runtime.memory import current_rss_nbytes
from tensorstow.runtime.module import sparse_rows
from tensorstow.runtime.module.sparse import SparseForwards
from tensorstow.runtime.module.sparse_rows import Reading, RowFile, RowLayout, read_runs
from tensorstow.runtime.module.sparse_window import RowWindow

from .recorded import record

LINK = Link("ssd", "dram", 1e9, latency_s=8e-6)  # gaps of 8000 bytes are read
BRIDGE = 8000
INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(nn.Module):
    """relu(up) to down; a threshold makes most neurons zero."""

    def __init__(self, d_model: int, neurons: int, *, bias: bool = True, threshold: float = 1.0) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, neurons)
        self.down = nn.Linear(neurons, d_model, bias=bias)
        nn.init.constant_(self.up.bias, -threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Gated(nn.Module):
    """act(gate) * up to down."""

    def __init__(self, d_model: int, neurons: int, *, squared: bool = False, threshold: float = 1.0) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, neurons)
        self.up = nn.Linear(d_model, neurons, bias=False)
        self.down = nn.Linear(neurons, d_model, bias=False)
        self.squared = squared
        nn.init.constant_(self.gate.bias, -threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.gate(x))
        return self.down((a.square() if self.squared else a) * self.up(x))


class Stack(nn.Module):
    """Layers one after another, each with a residual."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def site(module: nn.Module, prefix: str = "") -> FeedForward:
    inner: Any = module.get_submodule(prefix.rstrip("."))
    d_model, neurons = inner.down.weight.shape
    gated = isinstance(inner, Gated)
    gate = f"{prefix}gate" if gated else None
    item = inner.down.weight.element_size()
    return FeedForward(f"{prefix}down", f"{prefix}up", gate, gated and inner.squared, neurons, d_model, item)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = INTEGERS[a.dtype]
    return (
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
    )


def forget(module: nn.Module, sites: list[FeedForward]) -> None:
    """Nobody may read these weights any more."""
    for name in (n for s in sites for n in s.by_row):
        weight: Any = module.get_submodule(name).weight
        weight.data = torch.full((), float("nan"), dtype=weight.dtype).expand(weight.shape)


def check_traffic(sparse: SparseForwards, sites: list[FeedForward], *, window: int, rows: int, bundled: bool) -> None:
    """Bytes, requests and memory are those of the planner's model, exactly."""
    for layer, s in zip(sparse.layers, sites, strict=True):
        active = [frozenset(a.tolist()) for a in layer.active]
        shape = s.layer(bundled=bundled)
        cost = sparse_cost(shape, active, LINK, window=window, rows=rows)
        told = layer.traffic
        assert (told.steps, told.read_nbytes, told.requests) == (cost.tokens, cost.read_nbytes, cost.requests)
        assert (told.needed_nbytes, told.resident_nbytes) == (cost.needed_nbytes, cost.resident_nbytes)
        if rows >= s.neurons:  # then it is the model of the paper
            assert cost == flash.flash_cost(shape, active, LINK, window=window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bundled", [True, False])
@pytest.mark.parametrize(("window", "rows"), [(0, 0), (2, 1000), (4, 60)])
def test_bits_and_bytes_of_a_stack(tmp_path: Path, dtype: torch.dtype, bundled: bool, window: int, rows: int) -> None:
    torch.manual_seed(0)
    layers = (Plain(64, 300), Gated(64, 500), Plain(64, 300, bias=False), Gated(64, 256, squared=True))
    module = Stack(*layers).eval().to(dtype)
    inputs = [torch.randn(*shape, 64).to(dtype) for shape in ((1, 1), (1,), (2, 3), (1, 1), (7, 1), (1, 1), (40,))]
    with torch.no_grad():
        expected = [module(x) for x in inputs]
    sites = [site(module, f"layers.{i}.") for i in range(4)]
    options: dict[str, Any] = {"window": window, "rows": rows, "bundled": bundled, "bridge_nbytes": BRIDGE}
    with SparseForwards(module, sites, **options, recording=True, folder=tmp_path) as sparse:
        forget(module, sites)
        for x, y in zip(inputs, expected, strict=True):
            assert same_bits(module(x), y)
            with torch.inference_mode():
                assert same_bits(module(x), y)
        check_traffic(sparse, sites, window=window, rows=rows, bundled=bundled)
        dense = sum(s.layer().nbytes for s in sites) * 2 * len(inputs)
        assert 0 < sum(x.traffic.needed_nbytes for x in sparse.layers) < 0.7 * dense
        assert sparse.memory_nbytes == sparse_memory_nbytes(sites, rows, bundled=bundled)


def test_order_brings_neighbours_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Plain(512, 400, threshold=0.8).eval()
    x = torch.randn(1, 512)
    with torch.no_grad():
        expected, busy = module(x), module.up(x)[0] > 0
    order = [*busy.nonzero().flatten().tolist(), *(~busy).nonzero().flatten().tolist()]
    requests: list[int] = []
    for orders in ({}, {"down": order}):
        with SparseForwards(module, [site(module)], window=1, rows=400, orders=orders, folder=tmp_path) as sparse:
            for _ in range(2):
                assert same_bits(module(x), expected)
            requests.append(sparse.layers[0].traffic.requests)
            assert sparse.layers[0].traffic.needed_nbytes == int(busy.sum()) * 2048
    assert requests[1] == 1 < requests[0]
    with pytest.raises(InputError, match="400 neurons, 1 of them different"):
        SparseForwards(module, [site(module)], window=1, rows=1, orders={"down": [0] * 400}, folder=tmp_path)


def opt(**options: Any) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 99, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 512, "num_hidden_layers": 3}
    config: Any = OPTConfig(**shape, num_attention_heads=4, max_position_embeddings=64, pad_token_id=1, **options)
    model: Any = OPTForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.weight *= 20
            layer.fc1.bias -= 4.0
    return model


@pytest.mark.parametrize("planned", [False, True])
def test_opt_over_prompts_and_generation(tmp_path: Path, planned: bool) -> None:
    """With and without a plan for the other weights, found by the planner; the table of tokens is tied."""
    model = opt()
    tokens = torch.randint(2, 99, (1, 6), generator=torch.Generator().manual_seed(1))
    prompts = [tokens, tokens[:, :1], tokens.reshape(2, 3)]
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "output_logits": True}
    asked["return_dict_in_generate"] = True
    with torch.no_grad():
        expected = [model(p).logits for p in prompts]
        answer = model.generate(tokens, **asked)
    from tensorstow.planner.pytorch import lower_module

    sites = [*find_feed_forwards(lower_module(model, (tokens,), {}, name="opt"))]
    assert [s.down for s in sites] == [f"model.decoder.layers.{i}.fc2" for i in range(3)]
    executor = None
    if planned:
        recorded = record(model, lambda: model(tokens), tmp_path, kept_nbytes=1024)
        graph = recorded.graph
        dropped = {p.tensor for p in recorded.program.parameters if p.names[0].endswith("fc2.weight")}
        assert len(dropped) == 3
        operators = [replace(o, inputs=tuple(t for t in o.inputs if t not in dropped)) for o in graph.operators]
        recorded = replace(recorded, graph=replace(graph, operators=tuple(operators)))
        executor = recorded.execute(0.2)
    with SparseForwards(
        model, sites, window=4, rows=512, bridge_nbytes=BRIDGE, recording=True, folder=tmp_path
    ) as sparse:
        if executor is None:
            forget(model, sites)
        for p, y in zip(prompts, expected, strict=True):
            assert same_bits(model(p).logits, y)
        again = model.generate(tokens, **asked)
        assert torch.equal(again.sequences, answer.sequences)
        assert all(same_bits(a, b) for a, b in zip(again.logits, answer.logits, strict=True))
        check_traffic(sparse, sites, window=4, rows=512, bundled=True)
        steps = sum(x.traffic.steps for x in sparse.layers)
        needed = sum(x.traffic.needed_nbytes for x in sparse.layers)
        assert steps == 3 * (3 + 12)
        assert 0 < needed < 0.3 * steps * sites[0].layer().nbytes
    if executor is not None:
        assert torch.isfinite(model.state_dict()["model.decoder.layers.0.fc2.weight"]).all()
        executor.close()


def products_first(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A product that begins its sums with the first product, not with zero, as some kernels for small shapes do."""
    result, *rest = (x.unsqueeze(-2) * weight).unbind(-1)
    for product in rest:
        result = result + product
    return result if bias is None else result + bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [False, True])
def test_zero_results_have_the_sign_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gated: bool, dtype: torch.dtype
) -> None:
    """Where all products are zero, the sign of their sum shows the signs of weights that were not read."""
    monkeypatch.setattr(F, "linear", products_first)
    torch.manual_seed(0)
    module = (Gated(16, 7, threshold=0.0) if gated else Plain(16, 7, threshold=0.0)).eval()
    first: Any = module.gate if gated else module.up
    with torch.no_grad():
        first.weight.copy_(-first.weight.abs())
        module.down.bias = nn.Parameter(torch.full((16,), -0.0))
        module.down.weight.copy_(module.down.weight.abs() if gated else -module.down.weight.abs())
        module.down.weight[3] = 0.0
        if gated:
            module.up.weight.copy_(-module.up.weight.abs())
    module = module.to(dtype)
    cases = [torch.ones(n, 16, dtype=dtype) * sign for n in (1, 2, 3, 8, 33) for sign in (1, -1)]
    with torch.no_grad():
        expected = [module(x) for x in cases]
    assert any(bool((torch.signbit(y) & (y == 0)).any()) for y in expected)
    assert all((y == 0).all() != (y != 0).any() for y in expected)
    sites = [site(module)]
    with SparseForwards(module, sites, window=1, rows=7, folder=tmp_path) as sparse:
        forget(module, sites)
        for x, y in zip(cases, expected, strict=True):
            assert same_bits(module(x), y)
        assert 1 <= sparse.layers[0].traffic.whole < sparse.layers[0].traffic.steps


def test_rows_without_negative_weights_need_no_second_look(tmp_path: Path) -> None:
    """A pruned output is zero in every call; nothing that was skipped can have changed its sign."""
    torch.manual_seed(0)
    module = Plain(32, 128, bias=False, threshold=0.6).eval()
    with torch.no_grad():
        module.down.weight[7] = 0.0
        module.down.weight[8].abs_()
        x = torch.randn(1, 32)
        expected = module(x)
    assert expected[0, 7] == 0
    with SparseForwards(module, [site(module)], window=0, rows=0, folder=tmp_path) as sparse:
        assert same_bits(module(x), expected)
        assert (sparse.layers[0].traffic.steps, sparse.layers[0].traffic.whole) == (1, 0)


def test_a_gate_that_hides_an_overflow(tmp_path: Path) -> None:
    """0 * infinity is not a number, also where only the input is large."""
    module = Gated(2, 2, threshold=0.0).eval()
    with torch.no_grad():
        module.gate.weight.copy_(torch.tensor([[1e-20, 0.0], [-1.0, -1.0]]))
        module.up.weight.copy_(torch.tensor([[1e-20, 0.0], [4.0, 4.0]]))
        module.down.weight.fill_(1.0)
        cases = [torch.full((1, 2), 2e38), torch.full((1, 2), 1e10)]
        expected = [module(x) for x in cases]
    assert expected[0].isnan().all() and (expected[1] > 0).all()
    with SparseForwards(module, [site(module)], window=0, rows=0, folder=tmp_path) as sparse:
        for x, y, whole in zip(cases, expected, (1, 1), strict=True):
            torch.testing.assert_close(module(x), y, rtol=0, atol=0, equal_nan=True)
            assert sparse.layers[0].traffic.whole == whole


def test_weights_and_inputs_that_are_not_finite(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for module in (Plain(16, 64), Gated(16, 64)):
        module.eval()
        with torch.no_grad():
            module.down.weight[2, 5] = float("inf")
            module.down.weight[4, 60] = float("nan")
            if isinstance(module, Gated):
                module.up.weight[9, 1] = float("-inf")
        cases = [torch.randn(1, 16), torch.full((1, 16), 3e38), torch.tensor([[float("nan")] + [1.0] * 15])]
        with torch.no_grad():
            expected = [module(x) for x in cases]
        assert (expected[0].isnan().any() and not expected[0].isnan().all()) or isinstance(module, Gated)
        with SparseForwards(module, [site(module)], window=0, rows=0, recording=True, folder=tmp_path) as sparse:
            for x, y in zip(cases, expected, strict=True):
                torch.testing.assert_close(module(x), y, rtol=0, atol=0, equal_nan=True)
            assert {5, 60} <= set(sparse.layers[0].active[0].tolist())
            assert len(sparse.layers[0].active[0]) < 64


def test_autocast_hooks_and_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Stack(Gated(32, 128), Plain(32, 96), Plain(32, 96)).eval()
    inputs = [torch.randn(3, 32) for _ in range(3)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = [module(x) for x in inputs]
    with torch.no_grad():
        seen_before: list[torch.Tensor] = []
        hook = module.layers[0].up.register_forward_hook(lambda m, i, o: seen_before.append(o))  # type: ignore[arg-type]
        plain = module(inputs[0])
        hook.remove()
    sites = [site(module, f"layers.{i}.") for i in range(3)]
    before = {n: dict(m.__dict__) for n, m in module.named_modules()}
    with SparseForwards(module, sites, window=2, rows=50, folder=tmp_path):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for x, y in zip(inputs, expected, strict=True):
                assert same_bits(module(x), y)
        seen: list[torch.Tensor] = []
        hook = module.layers[0].up.register_forward_hook(lambda m, i, o: seen.append(o))  # type: ignore[arg-type]
        result = module(inputs[0].clone().requires_grad_())
        hook.remove()
        assert same_bits(result.detach(), plain) and same_bits(seen[0], seen_before[0])
    assert {n: dict(m.__dict__) for n, m in module.named_modules()} == before
    with torch.no_grad():
        assert same_bits(module(inputs[0]), plain)


def test_a_layer_computes_alone_and_out_of_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, fresh = Gated(32, 128).eval(), Gated(32, 128).eval()
    fresh.load_state_dict(module.state_dict())
    x, h = torch.randn(2, 32), torch.relu(torch.randn(2, 128) - 1)
    with SparseForwards(module, [site(module)], window=2, rows=30, folder=tmp_path), torch.no_grad():
        calls: list[Callable[[Any], torch.Tensor]]
        calls = [lambda m: m.up(x), lambda m: m.down(h), lambda m: m(x), lambda m: m.down(h), lambda m: m.up(x)]
        for call in calls:
            assert same_bits(call(module), call(fresh))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            module.down(torch.randn(2, 127))
        module.down.weight = fresh.down.weight
        assert same_bits(module(x), fresh(x))


def test_threads_that_call_at_once_take_turns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Stack(Gated(32, 128), Plain(32, 96), Gated(32, 128)).eval()
    inputs = [torch.randn(2, 32) for _ in range(24)]
    with torch.no_grad():
        expected = [module(x) for x in inputs]
    sites = [site(module, f"layers.{i}.") for i in range(3)]
    with SparseForwards(module, sites, window=2, rows=60, folder=tmp_path), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(same_bits(a, b) for a, b in zip(pool.map(module, inputs), expected, strict=True))


def test_what_is_no_site_is_refused_and_leaves_the_module_alone(tmp_path: Path) -> None:
    module = Stack(Plain(8, 16), Gated(8, 16)).eval()
    good = site(module, "layers.0.")
    before = dict(module.layers[0].down.__dict__)
    for bad, message in (
        (replace(good, down="layers.0"), "'layers.0' is a Plain"),
        (replace(good, up="nowhere"), "'nowhere' is no module"),
        (replace(good, up="layers.1.down"), "no feed-forward layer"),
    ):
        with pytest.raises(InputError, match=message):
            SparseForwards(module, [bad], window=1, rows=1, folder=tmp_path)
    with pytest.raises(InputError, match="several feed-forward layers"):
        SparseForwards(module, [good, good], window=1, rows=1, folder=tmp_path)
    with pytest.raises(InputError, match="give 0 or more"):
        SparseForwards(module, [good], window=-1, rows=1, folder=tmp_path)
    assert module.layers[0].down.__dict__ == before
    assert not list(tmp_path.iterdir())


def test_damage_is_found_and_the_next_call_begins_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Plain(64, 200).eval()
    x = torch.randn(1, 64)
    with torch.no_grad():
        expected = module(x)
    with SparseForwards(module, [site(module)], window=3, rows=200, folder=tmp_path) as sparse:
        file: Any = sparse._file  # pyright: ignore[reportPrivateUsage]
        content = memoryview(bytearray(file.layouts[0].nbytes))
        file._file.read_into(content, 0)
        file._file.write_from(memoryview(bytearray(len(content))), 0)
        with pytest.raises(ExecutionError, match=r"neuron \d+ of layer 0 is damaged"):
            module(x)
        file._file.write_from(content, 0)
        for _ in range(2):
            assert same_bits(module(x), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.integers(0, 39), max_size=12),
    st.sampled_from([100, 4096, 5000, 12000]),
    st.sampled_from([0, 4096, 30000]),
)
def test_runs_are_those_of_the_model(positions: set[int], piece: int, bridge: int) -> None:
    found = read_runs(np.array(sorted(positions), np.int64), piece, bridge)
    assert tuple(r[:2] for r in found) == flash.read_runs(positions, piece, bridge_nbytes=bridge)
    assert [p for _, _, a, b in found for p in range(a, b)] == list(range(len(positions)))


@pytest.mark.parametrize("row_nbytes", [20, 4096, 5000, 9000])
def test_pieces_that_requests_cut_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_nbytes: int) -> None:
    monkeypatch.setattr(sparse_rows, "READ_NBYTES", 8192)
    generator = np.random.default_rng(0)
    values = [generator.integers(0, 256, (50, row_nbytes), np.uint8) for _ in range(2)]
    for bundled in (True, False):
        layouts = [RowLayout(50, row_nbytes, 2, bundled)] * 2
        file = RowFile.write(layouts, lambda _: lambda start, stop: [v[start:stop] for v in values], tmp_path)
        for wanted in ([0, 1, 2, 30, 49], list(range(50)), [], [17], [3, 5, 9, 11]):
            reading, got = Reading(), np.zeros((2, 50, row_nbytes), np.uint8)
            for region, neurons, rows in file.read(1, np.array(wanted, np.int64), 20000, reading):
                parts = rows.reshape(len(neurons), -1, row_nbytes)
                for k in range(parts.shape[1]):
                    got[region + k, neurons] = parts[:, k]
            for k in range(2):
                assert (got[k, wanted] == values[k][wanted]).all()
            runs = flash.read_runs(wanted, layouts[0].piece_nbytes, bridge_nbytes=20000)
            assert reading.nbytes == layouts[0].regions * sum(e - b for b, e in runs)
        file.close()


def test_a_window_takes_its_memory_when_it_is_touched() -> None:
    window = RowWindow(1000, 32 << 10, calls=5, rows=1000)
    window.content[3] = 9
    before = current_rss_nbytes()
    window.touch()
    assert current_rss_nbytes() - before > 30 << 20  # of 31.25 MiB, one row was there
    assert (window.content[3] == 9).all()
    RowWindow(10, 64, calls=5, rows=0).touch()
