"""Parts of a pass: what begins one, what it reads, how long it takes, what it needs beside the weights; and plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, Operator, StorageKind
from tensorstow.ir.program import Lookup
from tensorstow.planner.build import plan_graph
from tensorstow.planner.costs import duration_ns
from tensorstow.planner.pytorch import (
    ModuleLowered,
    OpLowered,
    choose_lookups,
    live_nbytes,
    lower_module,
    parts,
    placed_weights,
    tables,
)
from tensorstow.planner.validate import faults

from ..graphs import machine
from ..modules import Borrowing, Cache, Cached, Decoder, InPlace, Mlp, ResNet

UNIT = machine(1 << 30).units[0]
IDS = torch.zeros(2, 7, dtype=torch.int64)


def lower(module: nn.Module, *args: Any, **kwargs: Any) -> OpLowered:
    return lower_module(module.eval(), args, kwargs, name="model")


def weights_of(part: Operator, graph: Graph) -> list[str]:
    """The weights among the inputs of a part."""
    return [t for t in part.inputs if graph.tensor[t].storage is not None]


def check(lowered: OpLowered, made: ModuleLowered) -> None:
    """What holds of all parts, derived from the operators alone."""
    graph, program = made.graph, made.program
    assert not list(faults(graph, machine(1 << 30)))
    placed = {p.tensor for p in program.parameters}
    assert placed == {s.id for s in graph.storages} == {b.blob for b in program.blobs}
    assert all(b.nbytes == graph.storage[b.blob].nbytes for b in program.blobs)
    looked_up = {rows.blob for rows in program.lookups.values()}
    # A part reads what its operators read: walk through them once more, and begin anew where a weight is new.
    walked: list[list[str]] = []
    before = True
    for op in lowered.graph.operators:
        read = [s for s in lowered.graph.reads(op) if s in placed]
        if op.op_type == "aten.embedding.default" and op.inputs[0] in looked_up:
            if before:
                walked = []
            walked.append(["lookup"])
            before = False
        elif not walked:
            walked.append(read)
            before = not read
        elif set(read) - set(walked[-1]) and not before:
            walked.append(read)
        else:
            walked[-1] = list(dict.fromkeys([*walked[-1], *read]))
            before = before and not read
    assert [weights_of(o, graph) if o.id not in program.lookups else ["lookup"] for o in graph.operators] == walked
    assert list(program.calls) == [o.id for o in graph.operators]


def test_a_part_begins_where_a_weight_is_read_that_was_not() -> None:
    lowered = lower(Decoder(), IDS)
    made = parts(lowered, UNIT)
    check(lowered, made)
    expected = ["table"]
    for i in range(2):
        expected += [f"attentions.{i}.qkv", f"attentions.{i}.out", f"mlps.{i}.gate", f"mlps.{i}.up", f"mlps.{i}.down"]
    assert [o.id for o in made.graph.operators] == [*expected, "head"]
    assert (
        weights_of(made.graph.operators[0], made.graph)
        == weights_of(made.graph.operators[-1], made.graph)
        == ["table.weight"]
    )
    tied = next(p for p in made.program.parameters if p.tensor == "table.weight")
    assert tied.names == ("table.weight", "head.weight")
    assert made.program.calls["mlps.0.up"] == "mlps.0.up"
    durations = [duration_ns(o, UNIT) for o in lowered.graph.operators]
    assert sum(o.measured_ns or 0 for o in made.graph.operators) == sum(durations)
    assert sum(o.flops for o in made.graph.operators) == sum(o.flops for o in lowered.graph.operators)


def test_weights_of_a_child_that_is_never_called() -> None:
    lowered = lower(Borrowing(), torch.zeros(3, 64))
    made = parts(lowered, UNIT)
    check(lowered, made)
    assert [(o.id, tuple(weights_of(o, made.graph))) for o in made.graph.operators] == [
        ("model", ("child.weight",)),
        ("other", ("other.weight",)),
        ("model#2", ("child.weight",)),
    ]
    assert made.program.calls == {"model": "", "other": "other", "model#2": ""}


@pytest.mark.parametrize("strategy", ["stow-order", "least-traffic"])
def test_no_strategy_changes_the_order_of_parts(strategy: str) -> None:
    made = parts(lower(Decoder(rows=1024), IDS), UNIT)
    plan = plan_graph(made.graph, machine(1 << 20), strategy=strategy, time_limit_s=5)
    assert [s.op for s in plan.steps] == [o.id for o in made.graph.operators]


def test_measured_times_of_operators_are_those_of_the_parts() -> None:
    lowered = lower(Mlp(), torch.zeros(3, 64))
    timed = tuple(replace(o, measured_ns=1000 + i) for i, o in enumerate(lowered.graph.operators))
    made = parts(replace(lowered, graph=replace(lowered.graph, operators=timed)), UNIT)
    # gate and silu, up and the product, down
    assert [o.id for o in lowered.graph.operators] == ["linear", "silu", "linear_1", "mul", "linear_2"]
    assert [o.measured_ns for o in made.graph.operators] == [2001, 2005, 1004]


def test_small_parameters_stay_and_large_buffers_do_not() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Linear(256, 256)
            self.spare = nn.Linear(256, 256)
            self.register_buffer("small", torch.zeros(256))
            self.register_buffer("table", torch.zeros(2048, 256))
            self.register_buffer("state", torch.zeros(2048, 256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.get_buffer("state").add_(1)
            return self.large(x) + self.get_buffer("small") + self.get_buffer("table")[0]

    lowered = lower(Buffered(), torch.zeros(3, 256))
    assert list(placed_weights(lowered)) == ["large.weight", "spare.weight", "table"]
    made = parts(lowered, UNIT)
    assert made.graph.storage["table"].kind is StorageKind.CONSTANT
    assert {s for o in made.graph.operators for s in made.graph.reads(o)} == {"large.weight", "table"}
    kept = 2 * 1024 + 1024 + 2048 * 1024
    assert min(o.workspace_nbytes for o in made.graph.operators) >= kept
    peak = max(live_nbytes(lowered))
    assert max(o.workspace_nbytes for o in made.graph.operators) == kept + peak


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Decoder, (IDS,)),
        (ResNet, (torch.zeros(2, 3, 64, 64),)),
        (InPlace, (torch.zeros(3, 64),)),
        (Cached, (torch.zeros(1, 1, 64), Cache(torch.zeros(1, 50, 64)))),
    ],
)
def test_live_bytes_by_brute_force(make: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> None:
    """Byte for byte against a replay that holds sets of storages; and never less than what operators touch."""
    lowered = lower(make(), *inputs)
    graph = lowered.graph
    total = len(graph.operators)
    first = {s.id: 0 if s.kind is StorageKind.INPUT else total for s in graph.storages if not s.homed}
    for i in reversed(range(total)):
        first |= {
            s: i for s in graph.writes(graph.operators[i]) if s in first and graph.storage[s].kind.value != "input"
        }
    for i, nbytes in enumerate(live_nbytes(lowered)):
        held = {s for s in first if first[s] <= i <= lowered.last.get(s, total)}
        assert nbytes == sum(graph.storage[s].nbytes for s in held)
        touched = {s for s in graph.touches(graph.operators[i]) if s in first}
        assert touched <= held
    made = parts(lowered, UNIT)
    check(lowered, made)


def test_tables_are_looked_up_where_rows_are_faster_than_the_whole() -> None:
    lowered = lower(Decoder(rows=4096), IDS)
    assert tables(lowered) == {"table.weight": ("embedding",)}
    assert not list(choose_lookups(lowered, machine(1 << 30)))
    small = machine(1 << 20)
    assert choose_lookups(lowered, small) == {"table.weight"}
    (link,) = [k for k in small.links if k.target == "dram"]
    slow = replace(small, links=tuple(replace(k, latency_s=1.0) for k in small.links))
    assert not list(choose_lookups(lowered, slow))
    made = parts(lowered, UNIT, looked_up=frozenset({"table.weight"}), link=link)
    check(lowered, made)
    assert made.program.lookups == {"table": Lookup("table.weight", 4096, 256)}
    assert made.program.calls["table"] == "table"
    rows, *rest, head = made.graph.operators
    assert weights_of(rows, made.graph) == []
    assert weights_of(head, made.graph) == ["table.weight"]
    assert rows.measured_ns is not None
    assert rows.measured_ns >= 14 * link.transfer_ns(256)
    assert all("table.weight" not in o.inputs for o in rest)
    with pytest.raises(InputError, match="over which link"):
        parts(lowered, UNIT, looked_up=frozenset({"table.weight"}))


def test_plans_of_parts() -> None:
    lowered = lower(Decoder(layers=3), IDS)
    made = parts(lowered, UNIT)
    workspace = max(o.workspace_nbytes for o in made.graph.operators)
    weights = sum(s.nbytes for s in made.graph.storages)
    largest = max(s.nbytes for s in made.graph.storages)
    for capacity in (weights, weights // 2, 2 * largest):
        small = machine(workspace + capacity, alignment=64)
        plan = plan_graph(made.graph, small, time_limit_s=5)  # which checks the plan
        assert [s.op for s in plan.steps] == [o.id for o in made.graph.operators]
        assert plan.certificate.simulated_s >= plan.certificate.bound_s * (1 - 1e-9)


def _llama() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=99,
    )
    return LlamaForCausalLM, config, {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}


def _gpt2() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel, GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=99), {"input_ids": IDS}


def _t5() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=64, d_ff=128, num_layers=1, num_heads=4, d_kv=16, vocab_size=99)
    return T5ForConditionalGeneration, config, {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}


def _mixtral() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=99,
        num_local_experts=4,
    )
    return MixtralForCausalLM, config, {"input_ids": IDS}


def _mamba() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=99, state_size=8)
    return MambaForCausalLM, config, {"input_ids": IDS}


def _whisper() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        vocab_size=99,
        max_source_positions=32,
        max_target_positions=32,
        num_mel_bins=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    inputs = {"input_features": torch.zeros(1, 8, 64), "decoder_input_ids": IDS[:1, :3]}
    return WhisperForConditionalGeneration, config, inputs


def _bert() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, vocab_size=99
    )
    return BertModel, config, {"input_ids": IDS}


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (_mixtral, _mamba, _whisper)]


@pytest.mark.parametrize("make", [_llama, _gpt2, _t5, _bert, *SLOW])
def test_networks_of_transformers_without_weights(make: Callable[[], tuple[Any, Any, dict[str, torch.Tensor]]]) -> None:
    kind, config, inputs = make()
    with torch.device("meta"):
        model: nn.Module = kind(config)
    lowered = lower_module(model.eval(), (), inputs, name="model")
    assert not list(faults(lowered.graph, machine(1 << 30)))
    parameters = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    weights = {s.id: s.nbytes for s in lowered.graph.storages if s.kind is StorageKind.WEIGHT}
    assert weights == {n: p.numel() * p.element_size() for n, p in parameters.items()}  # all are used, tied ones once
    named = {n for w in lowered.weights.values() if not w.is_buffer for n in w.names}
    assert named == set(every)
    assert "other" not in {o.cost_class for o in lowered.graph.operators}
    made = parts(lowered, UNIT)
    check(lowered, made)
    assert all(p.is_meta for p in model.parameters())
