from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.graph import Graph, Tensor
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import plan_graph
from tensorstow.planner.pytorch.generation import (
    Generation,
    Workload,
    cache_nbytes,
    cache_nbytes_per_token,
    inputs_nbytes,
    joint_graph,
    pass_s,
    predict_generation,
    with_durations,
)
from tests.graphs import chain, machine

MIB = 1 << 20
WEIGHTS = [MIB] * 4
BOX = machine(64 * MIB)


def lasting(ns: int, *, workspace: int = 0) -> Graph:
    """A pass whose four parts take `ns` each."""
    graph = chain(WEIGHTS, ns=ns)
    operators = tuple(replace(op, workspace_nbytes=workspace) for op in graph.operators)
    return replace(graph, operators=operators)


def given_bytes(*nbytes: int) -> Graph:
    """A pass that is given inputs of these sizes, in no storage of the plan's."""
    tensors = tuple(Tensor(f"i{k}", "uint8", (n,), None, n) for k, n in enumerate(nbytes))
    return Graph("decode", (), tensors, (), tuple(t.id for t in tensors), ())


def streaming(graph: Graph) -> Plan:
    """A plan that keeps two or three of the four weights' bytes out."""
    return plan_graph(graph, machine(2 * MIB + 64 * 1024))


def test_cache_grows_by_the_line_through_two_contexts() -> None:
    shorter, longer = given_bytes(8, 1000, 1000), given_bytes(8, 1800, 1800)
    assert inputs_nbytes(shorter) == 2008
    assert cache_nbytes_per_token(shorter, longer, 8) == 200
    assert cache_nbytes(shorter, longer, (10, 18), 10) == 2008
    assert cache_nbytes(shorter, longer, (10, 18), 110) == 2008 + 100 * 200
    assert cache_nbytes_per_token(shorter, shorter, 8) == 0
    with pytest.raises(InputError, match=r"3608 .* 2008|2008 .* 3608"):
        cache_nbytes_per_token(longer, shorter, 8)
    with pytest.raises(InputError, match="not by 0"):
        cache_nbytes_per_token(shorter, longer, 0)


def test_joint_graph_has_room_for_both_passes_and_the_whole_cache() -> None:
    decode, prefill = lasting(1000, workspace=10), lasting(9000, workspace=5000)
    assert {op.workspace_nbytes for op in joint_graph(decode, prefill).operators} == {5000}
    joint = joint_graph(decode, prefill, cache_growth_nbytes=6000)
    assert {op.workspace_nbytes for op in joint.operators} == {6010}
    assert {op.measured_ns for op in joint.operators} == {1000}
    with pytest.raises(PlanMismatchError, match=r"part 3 .*'op3'.* nothing"):
        joint_graph(decode, chain(WEIGHTS[:3]))
    with pytest.raises(InputError, match="5 bytes smaller"):
        joint_graph(decode, prefill, cache_growth_nbytes=-5)


def test_one_plan_takes_the_time_of_either_pass() -> None:
    """Nothing moves when everything is resident; so a pass takes what its parts take."""
    decode, prefill = lasting(1000), lasting(70_000)
    plan = plan_graph(decode, BOX)
    assert pass_s(plan, decode, decode, BOX) == pytest.approx(4e-6)
    assert pass_s(plan, decode, prefill, BOX) == pytest.approx(280e-6)
    assert with_durations(plan, decode, BOX) == plan


def test_a_plan_that_streams_is_bound_by_the_link_or_by_the_parts() -> None:
    box = machine(2 * MIB + 64 * 1024)
    decode = lasting(1000)
    plan = streaming(decode)
    read = sum(t.nbytes for t in plan.transfers)
    assert read > MIB
    # 1 GB/s: a nanosecond a byte.
    assert pass_s(plan, decode, decode, box) == pytest.approx(plan.certificate.simulated_s)
    assert read / 1e9 <= pass_s(plan, decode, decode, box)
    slow = lasting(100_000_000)
    assert pass_s(plan, decode, slow, box) == pytest.approx(0.4, rel=0.02)
    with pytest.raises(PlanMismatchError, match="'op3'"):
        with_durations(plan, chain(WEIGHTS[:3]), box)


def test_generation_by_hand() -> None:
    first, last, prefill = lasting(1000), lasting(3000), lasting(70_000)
    plan = plan_graph(first, BOX)
    found = predict_generation(
        plan,
        first,
        BOX,
        Workload(8, 100, 11),
        prefill=prefill,
        first=first,
        last=last,
        cache_nbytes=123,
        bound_limit_s=5,
    )
    assert (found.prefill_s, found.first_token_s, found.last_token_s) == pytest.approx((280e-6, 4e-6, 12e-6))
    assert found.token_s == pytest.approx(8e-6)
    assert found.seconds == pytest.approx(360e-6)
    assert found.tokens_per_s == pytest.approx(88 / 360e-6)
    assert found.decode_tokens_per_s == pytest.approx(1e6)
    assert found.decode_bound_s == pytest.approx(8e-6)
    assert found.decode_bound_tokens_per_s == pytest.approx(1e6)
    assert found.decode_bound_kind
    assert found.cache_nbytes == 123


def test_the_bound_is_below_what_a_streaming_plan_takes() -> None:
    box = machine(2 * MIB + 64 * 1024)
    first, last = lasting(100_000), lasting(900_000)
    plan = streaming(first)
    passes = {"prefill": last, "first": first, "last": last}
    found = predict_generation(plan, first, box, Workload(1, 8, 8), **passes, cache_nbytes=0, bound_limit_s=5)
    assert found.decode_bound_s is not None
    assert 0.5 * found.token_s < found.decode_bound_s <= found.token_s


def test_no_bound_unless_asked_for_and_bad_workloads() -> None:
    assert Generation(Workload(1, 1, 1), 1.0, 1.0, 1.0, 0).decode_bound_tokens_per_s is None
    assert Generation(Workload(2, 1, 1), 4.0, 1.0, 1.0, 0).tokens_per_s == 0.5
    with pytest.raises(InputError, match="0 new tokens"):
        Workload(1, 1, 0)
