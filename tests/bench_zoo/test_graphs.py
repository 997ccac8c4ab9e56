"""The graphs of the zoo are the published networks: parameters, arithmetic, shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from bench.zoo import (
    LLAMA_1B,
    LLAMA_8B,
    LLAMA_TINY,
    MIXTRAL,
    MOE_SMALL,
    Builder,
    cases,
    densenet121,
    gpt2,
    llama,
    parameters,
    resnet50,
    total_flops,
    unet,
)
from tensorstow.ir.graph import Graph, StorageKind
from tensorstow.planner.costs import onnx_cost

SMALL: dict[str, Callable[[], Graph]] = {
    "gpt2": partial(gpt2, batch=2, sequence=16, layers=2, width=64, heads=4, vocabulary=100, positions=32),
    "gpt2-parts": partial(gpt2, sequence=8, layers=2, width=64, heads=4, vocabulary=100, head_parts=3),
    "llama": partial(llama, LLAMA_TINY, sequence=16, logits="all"),
    "moe": partial(llama, MOE_SMALL, sequence=16),
    "moe-fixed": partial(llama, MOE_SMALL, sequence=1, routing="fixed"),
    "resnet50": resnet50,
    "resnet50-unfolded": partial(resnet50, folded=False),
    "densenet121": partial(densenet121, folded=False),
    "unet": partial(unet, size=64),
}


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (gpt2, 124_439_808),  # huggingface gpt2
        (partial(gpt2, head_parts=8), 124_439_808),
        (partial(llama, LLAMA_1B), 1_235_814_400),
        (partial(llama, LLAMA_8B), 8_030_261_248),
        (partial(llama, MIXTRAL), 46_702_792_704),
        (partial(llama, MIXTRAL, sequence=1, routing="fixed"), 46_702_792_704),
        (partial(resnet50, folded=False), 25_557_032),  # torchvision
        (partial(densenet121, folded=False), 7_978_856),
        (partial(unet, folded=False), 31_037_698),
    ],
)
def test_parameters_are_as_published(build: Callable[[], Graph], published: int) -> None:
    assert parameters(build()) == published


def test_folding_leaves_the_kernels_and_a_bias_for_each_norm() -> None:
    norms = 26_560  # channels of ResNet-50's norms: scale and shift become one bias
    assert parameters(resnet50()) == parameters(resnet50(folded=False)) - norms


@pytest.mark.parametrize(
    ("build", "giga_multiply_adds"),
    [(resnet50, 4.09), (densenet121, 2.83)],  # torchvision's tables
)
def test_arithmetic_of_convolutional_networks(build: Callable[[], Graph], giga_multiply_adds: float) -> None:
    graph = build()
    products = sum(op.flops for op in graph.operators if op.op_type in ("Conv", "Gemm"))
    assert products / 2e9 == pytest.approx(giga_multiply_adds, rel=0.005)
    assert total_flops(graph) < 1.03 * products


def test_arithmetic_of_a_transformer_is_two_operations_a_parameter_and_token() -> None:
    graph = llama(LLAMA_8B, sequence=256, logits="all")
    products = sum(op.flops for op in graph.operators if op.op_type == "Gemm")
    table = 128256 * 4096  # the rows of the tokens are picked, not multiplied
    norms = (2 * 32 + 1) * 4096
    assert products == 2 * 256 * (parameters(graph) - table - norms)


@pytest.mark.parametrize("name", SMALL)
def test_graphs_are_well_formed(name: str) -> None:
    graph = SMALL[name]()
    made = set(graph.storages_of(graph.inputs)) | {s.id for s in graph.storages if s.homed}
    for op in graph.operators:
        assert set(graph.reads(op)) <= made, op.id
        assert not set(graph.writes(op)) & made, f"{op.id} writes what is there already"
        made.update(graph.writes(op))
        assert op.moved_nbytes > 0
    for tensor in graph.tensors:
        assert tensor.storage is not None
        assert tensor.offset + tensor.nbytes <= graph.storage[tensor.storage].nbytes
    assert len(graph.operator) == len(graph.operators)
    assert all(graph.storage[s].kind is StorageKind.OUTPUT for s in graph.storages_of(graph.outputs))


@pytest.mark.parametrize("op_type", ["Gemm", "Conv", "Softmax", "LayerNormalization", "MaxPool", "Relu", "Add"])
def test_costs_are_those_of_the_planner(op_type: str) -> None:
    """The zoo's formulas against `planner.costs` on the same node, forms and all."""
    from onnx.helper import make_node

    graph = gpt2(sequence=16, layers=1) if op_type in ("Softmax", "LayerNormalization", "Gemm") else resnet50()
    op = next(o for o in graph.operators if o.op_type == op_type)
    attributes: dict[str, Any] = {"MaxPool": {"kernel_shape": [3, 3]}}.get(op_type, {})
    node = make_node(op_type, list(op.inputs), list(op.outputs), **attributes)
    forms = [[(graph.tensor[t].dtype, graph.tensor[t].shape or ()) for t in side] for side in (op.inputs, op.outputs)]
    cost = onnx_cost(node, *forms, threads=1)
    assert (cost.flops, cost.moved_nbytes, cost.dtype) == (op.flops, op.moved_nbytes, op.dtype)


def test_experts_that_are_not_drawn_are_not_touched() -> None:
    graph = SMALL["moe-fixed"]()
    touched = {s for op in graph.operators for s in graph.reads(op)}
    experts = [s for s in graph.storages if s.kind is StorageKind.EXPERT]
    assert len(experts) == 8 * 8 * 3
    assert sum(s.id in touched for s in experts) == 8 * 2 * 3
    every = SMALL["moe"]()
    touched = {s for op in every.operators for s in every.reads(op)}
    assert all(s.id in touched for s in every.storages if s.kind is StorageKind.EXPERT)


def test_routing_follows_its_seed() -> None:
    first, again, other = (llama(MOE_SMALL, sequence=1, routing="fixed", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.operators != other.operators


def test_unknown_routing_is_an_error() -> None:
    with pytest.raises(ValueError, match="routing 'some'"):
        llama(MOE_SMALL, sequence=1, routing="some")


def test_views_share_their_storage() -> None:
    b = Builder("views")
    x = b.input("x", 2, 6)
    seen = b.view(x, 3, 4)
    assert b.tensors[seen].storage == b.tensors[x].storage == "x"
    assert sum(s.nbytes for s in b.build(b.same("Relu", (seen,))).storages) == 2 * 6 * 2 * 4


def test_cases_have_names_of_their_own() -> None:
    names = [c.name for c in cases()]
    assert len(set(names)) == len(names)
    assert {c.mode for c in cases()} == {"inference", "training"}
    assert {"2", "3"} <= {m.partition("/")[2][:1] for c in cases() for m in c.machines}
