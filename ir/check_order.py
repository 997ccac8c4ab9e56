"""Whether a plan calls operators in an order in which they compute what the graph's own order computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .graph import Graph, Tensor
from .operators import is_random, is_turn
from .plan import Plan
from .uses import boundary_storages
from .violation import Violation


def check_order(plan: Plan, graph: Graph) -> Iterator[Violation]:
    """Every operator is called; all tensors are made before they are read; first calls change storages and draw random
    numbers in the order of the graph; an operator that is called again does again what it did."""
    yield from _check_made(plan, graph)
    yield from _check_first_calls(plan, graph)
    yield from _check_repeats(plan, graph)


def _check_made(plan: Plan, graph: Graph) -> Iterator[Violation]:
    made = set(graph.inputs) | {t.id for t in graph.tensors if t.storage and graph.storage[t.storage].homed}
    base_made = set(graph.storages_of(made))
    produced = {t for op in graph.operators for t in op.outputs}
    for i, step in enumerate(plan.steps):
        op = graph.operator[step.op]
        for name in op.inputs:
            storage = graph.tensor[name].storage
            known = name in made or (name not in produced and storage in base_made)
            if not known:
                yield Violation("order", f"step {i}, '{op.id}', reads '{name}' before any step makes it")
        made.update(op.outputs)
        base_made.update(graph.writes(op))
    missing = set(graph.operator) - {s.op for s in plan.steps}
    if missing:
        yield Violation("order", f"{len(missing)} operators are never called, '{min(missing)}' among them")


@dataclass(frozen=True, slots=True)
class _Access:
    """An operator of the graph, first called at `step`, reads or writes bytes [lo, hi) of a storage."""

    op: str
    step: int
    lo: int
    hi: int
    writes: bool


def _check_first_calls(plan: Plan, graph: Graph) -> Iterator[Violation]:
    """Of two operators, one of which changes bytes that the other reads or writes, the first in the graph is the first
    in the plan. Random ones change the state of their generator."""
    first: dict[str, int] = {}
    for i, step in enumerate(plan.steps):
        first.setdefault(step.op, i)
    called = [op for op in graph.operators if op.id in first]
    if all(first[a.id] < first[b.id] for a, b in pairwise(called)):
        return
    drawn = [op for op in called if is_random(op)]
    for a, b in pairwise(drawn):
        if first[a.id] > first[b.id]:
            text = f"steps {first[b.id]} and {first[a.id]} draw random numbers as '{b.id}' and '{a.id}'"
            yield Violation("order", f"{text}, in the graph the other way round")
    accesses: dict[str, list[_Access]] = {}
    for op in called:
        for names, writes in ((op.inputs, False), (op.outputs, True)):
            for tensor in (graph.tensor[name] for name in names):
                if tensor.storage is not None:
                    lo, hi = _range(graph, tensor)
                    accesses.setdefault(tensor.storage, []).append(_Access(op.id, first[op.id], lo, hi, writes))
    for storage, own in accesses.items():
        for before, after in _exchanged(own):
            does, did = ("writes" if x.writes else "reads" for x in (after, before))
            yield Violation(
                "order",
                f"step {after.step}, '{after.op}', {does} '{storage}' before step {before.step}, '{before.op}', {did} "
                "it, in the graph the other way round",
            )


def _range(graph: Graph, tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor is; what lies outside the plan is taken to change as a whole."""
    assert tensor.storage is not None
    whole = not graph.storage[tensor.storage].nbytes
    return (0, 1) if whole else (tensor.offset, tensor.offset + tensor.nbytes)


def _exchanged(accesses: list[_Access]) -> Iterator[tuple[_Access, _Access]]:
    """Pairs of accesses in the graph's order that share bytes, of which one writes, with the plan's the other one."""
    if all(a.step <= b.step for a, b in pairwise(accesses)):
        return
    for number, a in enumerate(accesses):
        if not a.writes:
            continue
        earlier = ((b, a) for b in accesses[:number] if not b.writes)
        later = ((a, b) for b in accesses[number + 1 :])
        for before, after in (*earlier, *later):
            if before.step > after.step and before.lo < after.hi and after.lo < before.hi:
                yield before, after


def _check_repeats(plan: Plan, graph: Graph) -> Iterator[Violation]:
    """An operator that is called again does what it did at first. What several operators write, what is at home and
    what is given are changed in place: an operator that writes such a storage is called once, and one that reads it
    must not find it changed in between. The rest is made anew, the same each time.
    """
    calls: dict[str, list[int]] = {}
    for i, step in enumerate(plan.steps):
        calls.setdefault(step.op, []).append(i)
    repeated = {op: steps for op, steps in calls.items() if len(steps) > 1}
    if not repeated:
        return
    for op, (_, again, *_) in repeated.items():
        if is_random(graph.operator[op]) or is_turn(graph.operator[op]):
            why = "draws random numbers" if is_random(graph.operator[op]) else "is the turn of a training step"
            yield Violation("recompute", f"step {again} calls '{op}' again, which {why} and is called once in a pass")
    writes = _changes(plan, graph)
    for op, steps in repeated.items():
        for name in graph.writes(graph.operator[op]):
            if name in writes:
                yield Violation("recompute", f"'{op}' is called twice, but '{name}' cannot be made anew by it")
        for tensor in (graph.tensor[name] for name in graph.operator[op].inputs):
            if tensor.storage not in writes:
                continue
            first, end = _range(graph, tensor)
            changes = [i for i, lo, hi in writes[tensor.storage] if lo < end and first < hi]
            for earlier, again in pairwise(steps):
                i = next((i for i in changes if earlier < i < again), None)
                if i is not None:
                    text = f"step {again} calls '{op}' as step {earlier} did, but since then step {i}"
                    changed = f"'{plan.steps[i].op}', has changed '{tensor.storage}', which it reads"
                    yield Violation("recompute", f"{text}, {changed}")


def _changes(plan: Plan, graph: Graph) -> dict[str, list[tuple[int, int, int]]]:
    """By storage that is changed in place: the steps that write it, with the bytes [lo, hi) that they write."""
    given = boundary_storages(graph)[0]
    writers: dict[str, set[str]] = {}
    writes: dict[str, list[tuple[int, int, int]]] = {}
    for i, step in enumerate(plan.steps):
        for tensor in (graph.tensor[name] for name in graph.operator[step.op].outputs):
            if tensor.storage is not None:
                writers.setdefault(tensor.storage, set()).add(step.op)
                writes.setdefault(tensor.storage, []).append((i, *_range(graph, tensor)))
    return {s: w for s, w in writes.items() if len(writers[s]) > 1 or s in given or graph.storage[s].homed}
