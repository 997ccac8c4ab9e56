from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine, TierKind
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import plan_graph
from tensorstow.planner.pytorch.generation import (
    Generation,
    Passes,
    Workload,
    as_profiled,
    cache_nbytes,
    cache_nbytes_per_token,
    inputs_nbytes,
    pass_s,
    predict_generation,
    with_durations,
)
from tensorstow.planner.pytorch.joint import calls_of, joint_graph, own_weights
from tensorstow.planner.pytorch.joint_plan import with_loads, with_scratch
from tests.graphs import chain, machine

MIB = 1 << 20
WEIGHTS = [MIB] * 4
BOX = machine(64 * MIB)


def lasting(ns: int, *, workspace: int = 0) -> Graph:
    """A pass whose four parts take `ns` each."""
    graph = chain(WEIGHTS, ns=ns)
    operators = tuple(replace(op, workspace_nbytes=workspace) for op in graph.operators)
    return replace(graph, operators=operators)


def parts(*made: tuple[str, int], workspace: int = 0, ns: int = 1000) -> Graph:
    """A pass whose parts read a weight of their own name each, of so many MiB; 'a+b' reads two, and 'a' once more is
    called 'a#2'."""
    names = list(dict.fromkeys(n for name, _ in made for n in name.partition("#")[0].split("+")))
    sizes = {n: mib * MIB for name, mib in made for n in name.partition("#")[0].split("+")}
    storages = tuple(Storage(n, sizes[n], StorageKind.WEIGHT, blob=n) for n in names)
    tensors = [Tensor(n, "uint8", (sizes[n],), n, sizes[n]) for n in names]
    operators: list[Operator] = []
    for name, _ in made:
        token = (f"{operators[-1].id} is done",) if operators else ()
        inputs = (*name.partition("#")[0].split("+"), *token)
        outputs = (f"{name} is done",)
        operators.append(Operator(name, "Part", inputs, outputs, workspace_nbytes=workspace, measured_ns=ns))
        tensors.append(Tensor(f"{name} is done", "opaque", None, None, 0))
    return Graph("parts", storages, tuple(tensors), tuple(operators), (), ())


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
    with pytest.raises(InputError, match="5 bytes smaller"):
        joint_graph(decode, prefill, cache_growth_nbytes=-5)


def test_one_plan_takes_the_time_of_either_pass() -> None:
    """Nothing moves when everything is resident; so a pass takes what its parts take."""
    decode, prefill = lasting(1000), lasting(70_000)
    plan = plan_graph(decode, BOX)
    assert pass_s(plan, decode, decode, BOX) == pytest.approx(4e-6)
    assert pass_s(plan, decode, prefill, BOX) == pytest.approx(280e-6)
    assert with_durations(plan, decode, decode, BOX) == plan


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
    with pytest.raises(PlanMismatchError, match=r"4 parts .* like 'encoder' of 'parts' from part 0"):
        with_durations(plan, decode, parts(("encoder", 1)), box)


def test_generation_by_hand() -> None:
    first, last, prefill = lasting(1000), lasting(3000), lasting(70_000)
    plan = plan_graph(first, BOX)
    found = predict_generation(
        plan,
        first,
        BOX,
        Workload(8, 100, 11),
        Passes(prefill, first, last),
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
    passes = Passes(last, first, last)
    found = predict_generation(plan, first, box, Workload(1, 8, 8), passes, cache_nbytes=0, bound_limit_s=5)
    assert found.decode_bound_s is not None
    assert 0.5 * found.token_s < found.decode_bound_s <= found.token_s


def test_no_bound_unless_asked_for_and_bad_workloads() -> None:
    assert Generation(Workload(1, 1, 1), 1.0, 1.0, 1.0, 0).decode_bound_tokens_per_s is None
    assert Generation(Workload(2, 1, 1), 4.0, 1.0, 1.0, 0).tokens_per_s == 0.5
    with pytest.raises(InputError, match="0 new tokens"):
        Workload(1, 1, 0)


TOKEN = parts(("table", 1), ("q", 2), ("o", 2), ("head", 1), workspace=700)
PROMPT = parts(
    ("table", 1), ("encoder", 2), ("wide", 3), ("table#2", 1), ("q", 2), ("k", 1), ("o", 2), ("head", 1),
    workspace=5000, ns=40_000,
)  # fmt: skip


def named(graph: Graph) -> list[str]:
    return [op.id for op in graph.operators]


def test_a_joint_graph_of_passes_with_other_parts_has_those_of_both() -> None:
    assert own_weights(TOKEN, PROMPT) == {"encoder", "wide", "k"}
    joint = joint_graph(TOKEN, PROMPT)
    assert named(joint) == ["table#prompt", "encoder", "wide", "table", "q", "k", "o", "head"]
    assert [op.measured_ns for op in joint.operators] == [0, 40_000, 40_000, 1000, 1000, 40_000, 1000, 1000]
    assert {op.workspace_nbytes for op in joint.operators} == {5000}
    for before, op in zip(joint.operators, joint.operators[1:], strict=False):
        assert op.inputs[-1] == before.outputs[0], "they run one after another"
    assert joint.reads(joint.operators[3]) == ("table",)
    assert named(joint_graph(PROMPT, TOKEN)) == named(PROMPT)
    assert set(calls_of(joint, PROMPT)) == set(named(joint))
    assert list(calls_of(joint, TOKEN)) == ["table#prompt", "q", "o", "head"], "the next one that reads the same"


def test_parts_are_the_same_by_what_they_read_not_by_name() -> None:
    """As in Mamba: a convolution over a prompt is made of other operators, with other names, for a token."""
    prompt = parts(("in", 1), ("conv+bias", 1), ("out", 1), ns=9000)
    token = parts(("in", 1), ("conv", 1), ("bias", 1), ("out", 1))
    other = replace(prompt, operators=tuple(replace(op, id=f"other {op.id}") for op in prompt.operators))
    assert not own_weights(token, other)
    joint = joint_graph(token, other)
    assert named(joint) == ["in", "other conv+bias", "conv", "bias", "out"]
    assert [op.measured_ns for op in joint.operators] == [1000, 0, 1000, 1000, 1000], "a token's pass"
    assert set(calls_of(joint, token)) == {"in", "conv", "bias", "out"}
    assert set(calls_of(joint, other)) == {"in", "other conv+bias", "out"}


def test_what_only_the_prompt_reads_neither_takes_time_nor_comes_for_a_token() -> None:
    box = machine(11 * MIB + 64 * 1024)
    joint = joint_graph(TOKEN, PROMPT)
    scratched = with_scratch(joint, own_weights(TOKEN, PROMPT), 4096)
    assert [s.id for s in scratched.storages if not s.homed] == ["encoder", "wide", "k"]
    even = plan_graph(joint, box)
    plan = with_loads(plan_graph(scratched, box), scratched, joint, box, time_limit_s=5)
    assert plan is not None
    assert not check(plan, joint, box)
    assert plan.certificate.moved_nbytes["ssd->dram"] >= 5 * MIB
    assert pass_s(even, joint, TOKEN, box) > 1e-3, "a plan that treats all alike keeps some of the encoder"
    # The six MiB that a token needs stay in memory; the prompt's own six come when it is read.
    assert pass_s(plan, joint, TOKEN, box) == pytest.approx(4e-6, rel=0.01)
    assert pass_s(plan, joint, TOKEN, box, stale=True) > 2e-3
    assert pass_s(plan, joint, PROMPT, box) > 2e-3
    passes = Passes(PROMPT, TOKEN, TOKEN)
    found = predict_generation(plan, joint, box, Workload(1, 8, 21), passes, cache_nbytes=0, bound_limit_s=5)
    assert found.token_s == pytest.approx(4e-6, rel=0.01)
    assert found.decode_bound_s == pytest.approx(4e-6, rel=0.01)
    assert found.seconds == pytest.approx(found.prefill_s + 2 * found.stale_s + 20 * found.token_s)


def test_what_is_left_of_the_budget_keeps_weights_of_the_prompt() -> None:
    box = machine(12 * MIB + 128 * 1024)
    joint = joint_graph(TOKEN, PROMPT)
    scratched = with_scratch(joint, own_weights(TOKEN, PROMPT), 4096)
    plan = with_loads(plan_graph(scratched, box), scratched, joint, box, time_limit_s=5)
    assert plan is not None
    assert not check(plan, joint, box)
    assert {t.storage for t in plan.transfers} == {"encoder", "wide"}
    assert plan.certificate.peak_nbytes["dram"] <= 12 * MIB + 128 * 1024


def test_a_device_loads_what_a_pass_leaves_out() -> None:
    box = machine(7 * MIB)
    joint = joint_graph(TOKEN, PROMPT)
    plan = plan_graph(joint, box)
    hbm: Machine = replace(box, tiers=(replace(box.tiers[0], kind=TierKind.HBM), box.tiers[1]))
    assert pass_s(plan, joint, TOKEN, hbm) == pass_s(plan, joint, TOKEN, hbm, stale=True)


def test_a_profile_of_one_pass_counts_in_the_others() -> None:
    joint = joint_graph(TOKEN, PROMPT)
    slower = {"table#prompt": 700, "q": 600, "o": -300}
    timed = (replace(op, measured_ns=(op.measured_ns or 0) + slower.get(op.id, 0)) for op in joint.operators)
    profiled = replace(joint, operators=tuple(timed))
    ran = replace(TOKEN, operators=(replace(TOKEN.operators[0], measured_ns=100), *TOKEN.operators[1:]))
    found = as_profiled(PROMPT, ran, profiled, BOX.units[0])
    assert named(found) == named(PROMPT)
    assert [op.measured_ns for op in found.operators] == [40_600, *[40_000] * 3, 40_600, 40_000, 39_700, 40_000]
