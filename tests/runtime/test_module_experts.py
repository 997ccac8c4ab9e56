"""Tests of runtime/module/experts*.py: bits of the eager loop under a cap, what is read, and what is kept."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.plan import Plan
from tensorstow.ir.program import ExpertCaching, ExpertLayer
from tensorstow.planner.build import plan_graph
from tensorstow.planner.experts.record import Recorder
from tensorstow.planner.pytorch import ModuleLowered, lower_module, parts
from tensorstow.planner.pytorch.experts import find_fused, leave_experts, placed_layers, without_experts
from tensorstow.runtime.module import ModuleExecutor
from tensorstow.runtime.module.experts import ExpertForwards
from tensorstow.runtime.module.experts_bind import Slices
from tensorstow.runtime.module.store_memory import store_module

from ..graphs import machine
from .recorded import release

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = ["mixtral", "olmoe", "qwen3", "gptoss"]


def build(name: str, vocabulary: int = 96) -> Any:
    """A model of three layers with random weights; the same for the same name."""
    torch.manual_seed(1)
    t: Any = transformers
    sizes = {**SIZES, "vocab_size": vocabulary}
    if name == "mixtral":
        made = t.MixtralForCausalLM(t.MixtralConfig(**sizes, num_local_experts=6, num_experts_per_tok=2))
    elif name == "olmoe":
        made = t.OlmoeForCausalLM(t.OlmoeConfig(**sizes, num_experts=12, num_experts_per_tok=3))
    elif name == "qwen3":
        more = {"head_dim": 8, "num_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
        made = t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**sizes, **more))
    else:
        assert name == "gptoss"
        rope = {"rope_type": "default", "rope_theta": 1e4}
        config = t.GptOssConfig(
            **sizes, head_dim=8, num_local_experts=6, num_experts_per_tok=2, rope_parameters=rope, sliding_window=16
        )
        made = t.GptOssForCausalLM(config)
    for parameter in made.parameters():  # routers that start at zero choose alike
        torch.nn.init.normal_(parameter, 0, 0.2)
    return made.eval()


def eager(name: str) -> Any:
    """The same, all of it in memory, computed by the loop over experts."""
    made = build(name)
    made.set_experts_implementation("eager")
    return made


NAMES = {
    "MixtralForCausalLM": "mixtral",
    "OlmoeForCausalLM": "olmoe",
    "Qwen3MoeForCausalLM": "qwen3",
    "GptOssForCausalLM": "gptoss",
}


@cache
def planned(kind: str) -> tuple[ModuleLowered, tuple[ExpertLayer, ...], Plan]:
    """A model's parts, its layers with experts, and a plan for what remains; made once for all tests."""
    model = build(NAMES[kind])
    lowered = lower_module(model, (), {"input_ids": torch.ones(1, 1, dtype=torch.long)}, name="moe")
    at = machine(64 << 20, bytes_per_s=2e9)
    whole = parts(lowered, at.units[0])
    layers = tuple(r.layer for r in placed_layers(whole, find_fused(model, lowered)))
    return whole, layers, plan_graph(without_experts(whole, layers).graph, at, time_limit_s=2)


@contextmanager
def cached(
    model: Any, *, slots: int, shared: bool = False, decay: float | None = 0.95, ahead: int = 0, memory: int = 0
) -> Generator[tuple[ModuleExecutor, ExpertForwards]]:
    """`model` run by a plan, its experts in so many slots; its own weights are gone."""
    whole, layers, plan = planned(type(model).__name__)
    caching = ExpertCaching(layers, slots, shared, decay, ahead, 0.0, "", memory=memory)
    found = leave_experts(whole, caching)
    at = machine(64 << 20, bytes_per_s=2e9)
    assert not {r.storage for r in plan.residencies} & {s.id for s in found.graph.storages if s.kind == "expert"}
    store = store_module(found.program, found.graph, model)
    release(model, found.program)
    executor = ModuleExecutor(plan, found.graph, found.program, store, at, model)
    try:
        executor.experts = ExpertForwards(model, caching)
        executor.attach(executor.experts)
        yield executor, executor.experts
    finally:
        executor.close()
        store.close()


def same(model: Any, reference: Any, ids: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_bits_are_those_of_the_eager_loop(name: str) -> None:
    model, reference = build(name), eager(name)
    with cached(model, slots=3, ahead=2, memory=16) as (_, experts):
        torch.manual_seed(0)
        for tokens in (1, 1, 7, 2, 1):
            assert same(model, reference, torch.randint(3, 96, (2, tokens)))
        prompt = torch.randint(3, 96, (1, 5))
        options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        assert torch.equal(model.generate(prompt, **options), reference.generate(prompt, **options))
        stats = experts.stats
        assert stats.misses
        assert stats.hits


@pytest.mark.parametrize(("slots", "shared"), [(1, False), (2, False), (1, True), (2, True), (5, True), (99, False)])
def test_sets_that_do_not_fit_are_served_in_rounds(slots: int, shared: bool) -> None:
    model, reference = build("olmoe"), eager("olmoe")
    with cached(model, slots=slots, shared=shared) as (_, experts):
        for tokens in (9, 1, 4):
            assert same(model, reference, torch.randint(3, 96, (1, tokens)))
        assert all(len(layer.cache.slot_of) <= slots for layer in experts.layers)
        size = experts.reading.layers[0].nbytes
        assert experts.stats.read_nbytes == experts.stats.misses * size


def test_what_is_read_is_what_was_missed_and_nothing_else() -> None:
    model = build("mixtral")
    with cached(model, slots=4) as (executor, experts):
        executor.run(input_ids=torch.tensor([[5]]))
        size = experts.reading.layers[0].nbytes
        assert experts.stats.misses == 3 * 2
        assert experts.stats.read_nbytes == 6 * size
        first = executor.stats.read_nbytes
        executor.run(input_ids=torch.tensor([[5]]))
        assert (experts.stats.hits, experts.stats.misses) == (6, 6)
        assert first - executor.stats.read_nbytes == 6 * size  # of the plan both passes read the same


def test_a_recorded_trace_is_what_the_routers_chose() -> None:
    model = build("qwen3")
    chosen: list[list[torch.Tensor]] = [[], [], []]
    with cached(model, slots=4) as (_, experts):
        for number, layer in enumerate(model.model.layers):

            def note(_: Any, __: Any, out: Any, n: int = number) -> None:
                chosen[n].append(out[2])

            layer.mlp.gate.register_forward_hook(note)
        recorder = Recorder(3, 10, 3)
        experts.record(recorder.add)
        for tokens in (4, 1, 1):
            model(input_ids=torch.randint(3, 96, (1, tokens)))
        experts.record(None)
        model(input_ids=torch.randint(3, 96, (1, 2)))
    trace = recorder.trace()
    assert trace.ids.shape == (6, 3, 3)
    for number in range(3):
        assert np.array_equal(trace.ids[:, number], torch.cat(chosen[number][:3]).numpy())
    assert trace.gates is not None


def test_a_read_that_fails_is_told_and_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = build("mixtral"), eager("mixtral")
    ids = torch.tensor([[5, 9]])
    with cached(model, slots=2) as (executor, experts):
        read = executor.store.read

        def fails(blob: str, *args: Any, **kwargs: Any) -> None:
            if "layers.1.mlp.experts" in blob:
                raise ExecutionError("the disk is gone")
            read(blob, *args, **kwargs)

        monkeypatch.setattr(executor.store, "read", fails)
        with pytest.raises(ExecutionError, match="the disk is gone"):
            model(input_ids=ids)
        monkeypatch.undo()
        assert same(model, reference, ids)
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[500]]))
        assert same(model, reference, ids)
        assert experts.stats.misses


def test_a_closed_module_says_so_and_its_memory_is_gone() -> None:
    model = build("mixtral")
    with cached(model, slots=2) as (executor, experts):
        model(input_ids=torch.tensor([[5]]))
        executor.close()
        with pytest.raises(ExecutionError, match="closed"):
            model(input_ids=torch.tensor([[5]]))
        experts.close()


def test_two_modules_of_one_class_side_by_side() -> None:
    one, other, first, second = build("mixtral"), build("olmoe"), eager("mixtral"), eager("olmoe")
    third = build("mixtral")  # without a plan, on transformers' own way
    before = third(input_ids=torch.tensor([[5, 6]])).logits
    with cached(one, slots=2), cached(other, slots=3):
        for ids in (torch.tensor([[5, 6]]), torch.tensor([[7]])):
            assert same(one, first, ids)
            assert same(other, second, ids)
        assert torch.equal(third(input_ids=torch.tensor([[5, 6]])).logits, before)


def test_what_the_loop_may_not_do_is_refused() -> None:
    model = build("mixtral")
    with cached(model, slots=2) as (_, experts):
        lazy = model.model.layers[0].mlp.experts.gate_up_proj
        slices = Slices(lazy, lambda e: torch.zeros(1))
        assert slices.shape == lazy.shape
        for use in (lambda: slices[1:3], lambda: slices.transpose(0, 1), lambda: slices[torch.tensor([1, 2])]):
            with pytest.raises(InputError, match="expert by expert"):
                use()
        other = build("mixtral")
        with pytest.raises(PlanMismatchError, match="does not place"):
            ExpertForwards(other, experts.reading)
        for wrong in ({"slots": 0}, {"layers": ()}, {"decay": 0.0}, {"decay": 1.5}, {"ahead": -1}, {"memory": -1}):
            with pytest.raises(InputError):
                ExpertForwards(model, replace(experts.reading, **wrong))
        first = experts.reading.layers[0]
        for bad in (replace(first, module="lost"), replace(first, parameters=()), replace(first, experts=5)):
            with pytest.raises(PlanMismatchError):
                ExpertForwards(model, replace(experts.reading, layers=(bad,)))
        with pytest.raises(InputError, match="twice"):
            ExpertForwards(model, replace(experts.reading, layers=(first, first)))
        held = lazy[2].clone()  # whoever looks at a weight gets its values from the store
        assert torch.equal(held, eager("mixtral").model.layers[0].mlp.experts.gate_up_proj[2])


def test_an_expert_cannot_be_written() -> None:
    model, reference = build("mixtral"), eager("mixtral")
    with cached(model, slots=2):
        kind: Any = type(model.model.layers[0].mlp.experts)
        original = kind.forward.__wrapped__

        def writes(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
            self.down_proj[0].zero_()
            return original(self, hidden_states, top_k_index, top_k_weights)

        kind.forward.__wrapped__ = writes
        try:
            with cached(build("mixtral"), slots=2) as (executor, _), pytest.raises(InputError, match="changed"):
                executor.module(input_ids=torch.tensor([[5]]))
        finally:
            kind.forward.__wrapped__ = original
        assert same(model, reference, torch.tensor([[5]]))
