"""What AOT autograd is given in place of the two halves: graphs of their form, and functions that run ours."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import fx, nn

from .joint_graph import Gradients, Joint, Sections
from .joint_shown import Unwritten, shown


@dataclass(slots=True)
class _Held:
    """The state between a forward and its backward; outputs that the backward reads, until the caller has them."""

    state: object
    shown: list[torch.Tensor]
    unwritten: Unwritten | None = None


class States:
    """Runs forward and backward, and hands autograd a token in place of the state between them."""

    def __init__(self, joint: Joint, sections: Sections) -> None:
        self.sections = sections
        self.saved = [i for i, p in enumerate(joint.primals) if p.node in sections.read]
        self._next = count()
        self._held: dict[int, _Held] = {}
        self._shown = shown(joint)
        self._latest: _Held | None = None

    def run_forward(self, primals: list[Any]) -> list[Any]:
        """The forward's outputs, the token, and the primals that the backward reads."""
        saved = [primals[i] for i in self.saved]
        outputs, state = self.sections.forward(primals)
        for i in self._shown:  # autograd ties what is returned to the token, which would hold the state through it
            outputs[i] = outputs[i].detach()
        number = next(self._next)
        token = torch.tensor([number])
        self._held[number] = self._latest = _Held(state, [outputs[i] for i in self._shown])
        weakref.finalize(token, self._held.pop, number, None)
        return [*outputs, token, *saved]

    def hand_over(self, results: Sequence[Any]) -> None:
        """`results` are what the caller gets of the forward that has just run."""
        held, self._latest = self._latest, None
        if held is not None and held.shown:
            held.unwritten = Unwritten(results, held.shown)
            held.shown = []

    def run_backward(self, arguments: list[Any]) -> Gradients:
        """The gradients, of the token, what was saved beside it and the tangents. RuntimeError where the caller has
        written a result that they depend on."""
        token, tangents = arguments[0], arguments[1 + len(self.saved) :]
        arguments.clear()
        held = self._held[int(token)]
        if held.unwritten is not None:
            held.unwritten.check()
            held.unwritten = None  # it holds results
        return self.sections.backward(held.state, tangents)


def gives(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """A compiler whose result is `function`, marked as one that clears its list of arguments, so that no one holds
    them any longer."""

    def boxed(arguments: list[Any]) -> Any:
        return function(arguments)

    def compiler(*_: object) -> Callable[[list[Any]], Any]:
        return boxed

    boxed.__dict__["_boxed_call"] = True
    return compiler


def shells(joint: Joint, saved: Sequence[int]) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A forward and a backward graph that have the results of ours, and compute nothing: AOT reads their form only."""
    nodes = {n.name: n for n in joint.module.graph.find_nodes(op="placeholder")}
    fake = next(n.meta["val"].fake_mode for n in nodes.values() if isinstance(n.meta.get("val"), torch.Tensor))
    with fake:
        token_value = torch.empty(1, dtype=torch.int64)
    forward, backward = fx.Graph(), fx.Graph()
    given = [_copy(forward.placeholder(p.node), nodes[p.node]) for p in joint.primals]
    # Without a value in its meta it is not taken for a buffer that the backward may overwrite.
    token = forward.call_function(torch.ops.aten.empty.memory_format, ([1],))
    results = [_stand_in(forward, node) for node in joint.outputs[: joint.forward_outputs]]
    forward.output((*results, token, *(given[i] for i in saved)))
    held = backward.placeholder("token")
    held.meta["val"] = token_value
    for p in (*(joint.primals[i] for i in saved), *(p for p in joint.placeholders if p.kind == "tangent")):
        _copy(backward.placeholder(p.node), nodes[p.node])
    backward.output(tuple(_stand_in(backward, node) for node in joint.outputs[joint.forward_outputs :]))
    return fx.GraphModule(nn.Module(), forward), fx.GraphModule(nn.Module(), backward)


def _copy(new: fx.Node, old: fx.Node) -> fx.Node:
    new.meta.update(old.meta)
    return new


def _stand_in(graph: fx.Graph, node: fx.Node | None) -> fx.Node | None:
    """A node of `graph` with the form of `node`."""
    if not isinstance(node, fx.Node):
        return node
    return _copy(graph.call_function(torch.ops.aten.empty.memory_format, ([0],)), node)
