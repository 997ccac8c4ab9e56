"""The derived training step: gradients that add up, values that are still there, and what each backward reads."""

from __future__ import annotations

from functools import partial
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.zoo import (
    LLAMA_TINY,
    MOE_SMALL,
    Builder,
    densenet121,
    gpt2,
    llama,
    parameters,
    resnet50,
    training_graph,
    unet,
)
from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, StorageKind

from .slopes import check_gradients

NETWORKS = {
    "gpt2": partial(
        gpt2, batch=2, sequence=16, layers=2, width=64, heads=4, vocabulary=100, positions=32, logits="all"
    ),
    "llama": partial(llama, LLAMA_TINY, sequence=16, logits="all"),
    "moe": partial(llama, MOE_SMALL, sequence=16),
    "resnet50": partial(resnet50, folded=False),
    "densenet121": partial(densenet121, folded=False),
    "unet": partial(unet, size=64, folded=False),
}
OPTIONS = [(u, p) for u in ("last", "early") for p in (True, False)]


@pytest.mark.parametrize(("update", "sum_in_place"), OPTIONS)
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "resnet50"])
def test_gradients_of_networks_are_the_sums_over_all_paths(name: str, update: str, sum_in_place: bool) -> None:
    check_gradients(NETWORKS[name](), update, sum_in_place)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any wiring of operators over [4, 4]: values and weights read again and again, by one operator twice too."""
    b = Builder("any")
    values = [b.input("x", 4, 4)]
    weights = [b.weight(f"w{i}", 4, 4) for i in range(draw(st.integers(1, 3)))]
    values.append(b.linear(values[0], 4, "first", bias=draw(st.booleans()), weight=weights[0]))
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["Add", "Mul", "Relu", "Gelu", "Gemm", "bias", "view"]))
        x, y = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        if kind == "Gemm":
            values.append(b.linear(x, 4, f"linear{i}", weight=draw(st.sampled_from(weights)), bias=False))
        elif kind == "bias":
            values.append(b.same("Add", (x, b.weight(f"bias{i}", 4))))
        elif kind == "view":
            seen = b.same("Relu", (b.view(x, 16),))
            values.append(b.view(seen, 4, 4) if f"{seen}@4x4" not in b.tensors else seen)
        else:
            values.append(b.same(kind, (x, y) if kind in ("Add", "Mul") else (x,)))
    total = values[1]
    for y in values[2:]:
        total = b.same("Add", (total, y))
    used = {x for op in b.operators for x in op.inputs}
    for w in weights:
        if w not in used:
            total = b.linear(total, 4, f"use.{w}", weight=w, bias=False)
    return b.build(total)


@given(graphs(), st.sampled_from(OPTIONS))
@settings(max_examples=80, deadline=None)
def test_gradients_of_any_wiring_are_the_sums_over_all_paths(graph: Graph, options: tuple[str, bool]) -> None:
    check_gradients(graph, *options)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_well_formed(name: str) -> None:
    forward = NETWORKS[name]()
    step = training_graph(forward)
    made = {t.id for t in step.tensors if t.storage and step.storage[t.storage].homed} | set(step.inputs)
    made -= {t for op in step.operators for t in op.outputs}
    base = set(step.storages_of(made))
    produced = {t for op in step.operators for t in op.outputs}
    for op in step.operators:
        for x in op.inputs:
            tensor = step.tensor[x]
            assert x in made or (x not in produced and tensor.storage in base), f"{op.id} reads {x}"
            assert tensor.offset + tensor.nbytes <= step.storage[tensor.storage or ""].nbytes
        made.update(op.outputs)
        base.update(step.writes(op))
    assert len(step.operator) == len(step.operators)
    assert len(step.tensor) == len(step.tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_products_backward_take_twice_their_forward(name: str) -> None:
    """Both operands' gradients take the forward's arithmetic; a first layer needs none of its input."""
    forward = NETWORKS[name]()
    step = training_graph(forward)
    kinds = ("Gemm", "MatMul", "Conv", "ConvTranspose")
    for op in (o for o in forward.operators if o.op_type in kinds):
        parts = [step.operator[f"{op.id}.{part}"] for part in ("da", "db") if f"{op.id}.{part}" in step.operator]
        from_input = set(forward.reads(op)) & set(forward.storages_of(forward.inputs))
        assert [p.flops for p in parts] == [op.flops] * (1 if from_input else 2), op.id


def test_states_and_gradients_have_the_size_of_the_parameters() -> None:
    forward = resnet50(folded=False)
    step = training_graph(forward, optimizer="adam")
    nbytes = 4 * parameters(forward)
    of_kind = {k: sum(s.nbytes for s in step.storages if s.kind is k) for k in StorageKind}
    running = 2 * 26_560 * 4  # running mean and variance of each norm's channels
    assert of_kind[StorageKind.GRADIENT] == of_kind[StorageKind.WEIGHT] == nbytes
    assert of_kind[StorageKind.OPTIMIZER_STATE] == 2 * nbytes + running
    plain = training_graph(forward, optimizer="sgd")
    assert sum(s.nbytes for s in plain.storages if s.kind is StorageKind.OPTIMIZER_STATE) == running


def test_updates_write_parameter_and_states_in_place() -> None:
    step = training_graph(NETWORKS["llama"](), optimizer="adam")
    updates = [op for op in step.operators if op.op_type == "adam"]
    assert len(updates) == sum(s.kind is StorageKind.WEIGHT for s in step.storages)
    for op in updates:
        written = step.writes(op)
        assert set(written) < set(step.reads(op))
        kinds = [step.storage[s].kind for s in written]
        assert kinds == [StorageKind.WEIGHT, StorageKind.OPTIMIZER_STATE, StorageKind.OPTIMIZER_STATE]
        assert not set(op.outputs) & set(op.inputs)


def test_early_updates_come_before_the_backward_ends() -> None:
    forward = NETWORKS["llama"]()
    last, early = (training_graph(forward, update=u) for u in ("last", "early"))
    assert {o.id for o in last.operators} == {o.id for o in early.operators}

    def first_update(step: Graph) -> int:
        return next(i for i, op in enumerate(step.operators) if op.op_type == "adam")

    backward_end = max(i for i, op in enumerate(last.operators) if op.op_type != "adam")
    assert first_update(last) == backward_end + 1
    assert first_update(early) < backward_end / 2


@pytest.mark.parametrize(
    ("op_type", "inputs", "output", "statistics"),
    [
        ("Add", (), False, ()),
        ("Relu", (), True, ()),
        ("Gelu", (0,), False, ()),
        ("Softmax", (), True, ()),
        ("Mul", (0, 1), False, ()),
        ("LayerNormalization", (0, 1), False, ("mean", "rstd")),
        ("RMSNormalization", (0, 1), False, ("rstd",)),
        ("BatchNormalization", (0, 1), False, ("mean", "rstd")),
        ("MaxPool", (), False, ("indices",)),
        ("AveragePool", (), False, ()),
        ("Concat", (), False, ()),
        ("Transpose", (), False, ()),
        ("Gemm", (0, 1), False, ()),
        ("Conv", (0, 1), False, ()),
        ("Attention", (0, 1, 2), True, ("logsumexp",)),
    ],
)
def test_backward_reads_what_autograd_saves(
    op_type: str, inputs: tuple[int, ...], output: bool, statistics: tuple[str, ...]
) -> None:
    """Between the gradients: the operands, the result, and the statistics that PyTorch's derivatives name."""
    b = Builder("one")
    images = op_type in ("Conv", "BatchNormalization", "MaxPool", "AveragePool", "Concat")
    shape = (2, 4, 4, 4) if images or op_type == "Attention" else (4, 4)
    count = {"Attention": 3, "Add": 2, "Mul": 2, "Concat": 2}.get(op_type, 1)
    given = [b.same("Relu", (b.weight(f"p{i}", *shape),)) for i in range(count)]
    x = given[0]
    made = {
        "Gemm": lambda: b.linear(x, 4, "op"),
        "Conv": lambda: b.conv(x, 4, 3, "op"),
        "LayerNormalization": lambda: b.layer_norm(x, "op"),
        "RMSNormalization": lambda: b.rms_norm(x, "op"),
        "BatchNormalization": lambda: b.batch_norm(x, "op"),
        "MaxPool": lambda: b.pool(x, 2, stride=2),
        "AveragePool": lambda: b.pool(x, 2, stride=2, kind="AveragePool"),
        "Concat": lambda: b.concat(*given),
        "Transpose": lambda: b.transpose(x, 1, 0),
        "Attention": lambda: b.attention(*given),
    }.get(op_type, lambda: b.same(op_type, given))()
    graph = b.build(made)
    step = training_graph(graph)
    op = graph.operators[-1]
    wanted = {op.inputs[i] for i in inputs} | ({op.outputs[0]} if output else set[str]())
    wanted |= {f"{op.id}.{s}" for s in statistics}
    kernels = [o for o in step.operators if o.id.rpartition(".")[0] == op.id and o.op_type == f"{op_type}Backward"]
    assert bool(kernels) == (op_type != "Add")  # both terms of a sum get the gradient as it is
    assert {x for o in kernels for x in o.inputs} - {f"d:{op.outputs[0]}"} == wanted


def test_running_means_change_in_place_and_are_no_parameters() -> None:
    step = training_graph(resnet50(folded=False))
    norm = next(op for op in step.operators if op.op_type == "BatchNormalization")
    running = [s for s in step.writes(norm) if "running" in s]
    assert len(running) == 2
    assert set(running) < set(step.reads(norm))
    assert not any("running" in op.id for op in step.operators if op.op_type == "adam")


def test_a_value_of_two_terms_is_summed_in_place_where_nothing_else_reads_it() -> None:
    forward = NETWORKS["densenet121"]()
    lean, plain = (training_graph(forward, sum_in_place=p) for p in (True, False))
    sums = [op for op in lean.operators if op.op_type == "Add" and op.id.startswith("d:")]
    assert sums
    assert all(set(lean.writes(op)) < set(lean.reads(op)) for op in sums)
    assert not any(set(plain.writes(op)) & set(plain.reads(op)) for op in plain.operators if op.op_type == "Add")
    assert sum(s.nbytes for s in lean.storages) < sum(s.nbytes for s in plain.storages)


def test_unknown_options_and_operators_are_errors() -> None:
    graph = NETWORKS["llama"]()
    with pytest.raises(InputError, match="no optimizer is called 'lion'"):
        training_graph(graph, optimizer="lion")
    with pytest.raises(InputError, match="update 'soon'"):
        training_graph(graph, update="soon")
    with pytest.raises(InputError, match="3 outputs"):
        training_graph(gpt2(sequence=8, layers=1, head_parts=3))
    b = Builder("odd")
    odd = b.same("Erf", (b.linear(b.input("x", 4, 4), 4, "fc"),))
    with pytest.raises(InputError, match="'Erf', which has no rule"):
        training_graph(b.build(odd))


def test_a_loss_over_images_has_a_label_for_each_pixel() -> None:
    step = training_graph(unet(size=64, batch=2, folded=False))
    assert step.tensor["labels"].shape == (2, 64, 64)
    assert prod(training_graph(resnet50(folded=False, batch=3)).tensor["labels"].shape or ()) == 3
