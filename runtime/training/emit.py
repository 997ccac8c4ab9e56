"""Forward and backward of a plan as straight-line Python: one line an operator, in the order of the plan's steps.

What is read is made where it is read: views are cut anew beside their use and never kept across the turn; a value that
the plan keeps somewhere is seen through a view of that place. What is not placed is deleted after its last use. The
text is meant to be read; `Code.source` shows it.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from operator import getitem
from typing import Any, cast

import torch
from torch import fx

from .emit_calls import Call, Key, Values
from .emit_section import Line, Section, text_of
from .joint_graph import Joint


@dataclass(frozen=True)
class Code:
    """`forward(primals)` gives the forward's outputs and what is saved; `backward(saved, tangents)` the gradients.

    Both clear the lists that they are given. `read` names the placeholders that the backward reads. What `hooks` says
    at each moment, the code calls. `attributes` names, by target, what the graph holds itself.
    """

    source: str
    forward: Callable[[list[Any]], tuple[list[Any], list[Any]]]
    backward: Callable[[list[Any], list[Any]], list[Any]]
    read: frozenset[str]
    hooks: dict[str, Any]
    attributes: Mapping[str, str]

    def bind(self, constants: Mapping[str, Any]) -> None:
        """From now on the graph holds these, by target: the `constants` of a joint graph with the same key."""
        for target, name in self.attributes.items():
            self.hooks[name] = constants[target]


def emit(
    joint: Joint,
    calls: Sequence[Call],
    turn: int,
    place: Callable[[Key, int], torch.Tensor],
    hooks: Mapping[str, Any],
    *,
    address: int = 0,
    name: str = "training",
) -> Code:
    """Code for `calls`, whose `turn`-th stands between forward and backward.

    `place(key, offset)` is the value's tensor at an offset of the arena, which begins at `address`. `hooks` are the
    names that the text calls: `advance(t)`, `at(t)` and `done()` around steered operators, `settle(t, *results)` where
    a result missed its place, for the update at step t `update_t(gradient)`, for a norm `norm_t(gradient)`, for the
    factor `factor_t()`. Raises PlanMismatchError for what the
    graph has not.
    """
    values = Values(joint, calls, place, address)
    backward_lines, read, saved = _backward(values, turn)
    forward_lines = _forward(values, turn, saved)
    source = "\n".join((*text_of(forward_lines), "", "", *text_of(backward_lines), ""))
    file = f"<tensorstow {name} {next(_numbers)}>"
    namespace: dict[str, Any] = {**hooks, **values.constants, "torch": torch}
    exec(compile(source, file, "exec"), namespace)  # the text is ours, made of the graph's names and numbers
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return Code(source, namespace["forward"], namespace["backward"], read, namespace, values.attributes)


def emit_plain(joint: Joint) -> Code:
    """Forward and backward in the order of the graph, with nothing placed and nothing repeated."""
    results = {n for n in joint.outputs[: joint.forward_outputs] if n is not None}
    nodes = [n for n in joint.module.graph.nodes if n.op == "call_function" and n.target is not getitem]
    ends = {cast("fx.Node", n.args[0]) if n.target is getitem else n for n in results}
    last = max((i for i, n in enumerate(nodes) if n in ends), default=-1)
    calls = [Call(n.name) for n in nodes]
    calls.insert(last + 1, Call("turn"))
    return emit(joint, calls, last + 1, _nothing_placed, {}, name="step without a plan")


def _nothing_placed(key: Key, address: int) -> torch.Tensor:
    raise AssertionError(f"{key} at {address}")


_numbers = count()


def _forward(values: Values, turn: int, saved: Sequence[str]) -> list[Line]:
    """Lines of the forward, which ends with the turn."""
    section = Section(values)
    given = [p.node for p in values.joint.primals]
    section.begin("def forward(given):", [("given", given)])
    for t, call in enumerate(values.calls[:turn]):
        section.step(t, call)
    if values.calls[turn].advance:
        section.lines.append(Line(f"advance({turn})"))
    outputs = [section.result(n, turn) for n in values.joint.outputs[: values.joint.forward_outputs]]
    kept = [section.saved(name, turn) for name in saved]
    reads = (*(o for o in outputs if o != "None"), *kept)
    section.lines.append(Line(f"return [{', '.join(outputs)}], [{', '.join(kept)}]", reads))
    return section.lines


def _backward(values: Values, turn: int) -> tuple[list[Line], frozenset[str], list[str]]:
    """Lines of the backward, the placeholders that it reads, and the variables that the forward saves for it."""
    section = Section(values, opened=False)
    tangents = [p.node for p in values.joint.placeholders if p.kind == "tangent"]
    section.alive.update(dict.fromkeys(tangents))
    for t, call in enumerate(values.calls[turn + 1 :], turn + 1):
        section.step(t, call)
    updated = {c.update for c in values.calls if c.update}
    results: list[str] = []
    for primal, node in zip(values.joint.primals, values.joint.outputs[values.joint.forward_outputs :], strict=True):
        results.append("None" if primal.node in updated else section.result(node, len(values.calls)))
    section.lines.append(Line(f"return [{', '.join(results)}]", tuple(r for r in results if r != "None")))
    saved = list(section.missing)
    head = Section(values)
    head.begin("def backward(saved, tangents):", [("saved", saved), ("tangents", tangents)])
    read = frozenset(p.node for p in values.joint.primals if p.node in section.minded)
    return [*head.lines, *section.lines], read, saved
