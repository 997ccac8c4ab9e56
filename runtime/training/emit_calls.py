"""The steps that are written, and what the values of a joint graph are called in the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, TypeAlias, cast

import torch
from torch import fx

from .joint_graph import Joint, attribute

Key: TypeAlias = "tuple[str, int]"
"""A value: result `int` of the node named so."""


@dataclass(frozen=True, slots=True)
class Call:
    """A step: operator `op` of the joint graph, the turn, the update of the parameter of a placeholder, the norm of its
    gradient, or the factor that the norms give.

    `places` are the offsets in the arena of the values that the step touches and the plan places; `advance` says that a
    transfer may start or must be complete at its instant, `steered` that its results are told their places. `ignored`
    are placeholders that the operator is given and whose content makes no difference: a batch norm's running mean,
    once more, when the forward has changed it.
    """

    op: str
    places: Mapping[Key, int] = field(default_factory=dict[Key, int])
    advance: bool = False
    steered: bool = False
    update: str | None = None
    norm: str | None = None
    factor: bool = False
    ignored: frozenset[str] = frozenset()


class Values:
    """Knows the graph, what each value is called, and the values that stand in the text by a name."""

    def __init__(
        self, joint: Joint, calls: Sequence[Call], place: Callable[[Key, int], torch.Tensor], address: int
    ) -> None:
        self.joint = joint
        self.address = address
        self.calls = calls
        self.place = place
        self.nodes = {n.name: n for n in joint.module.graph.nodes}
        self.made = {c.op for c in calls}
        self.constants: dict[str, Any] = {}
        self.attributes: dict[str, str] = {}
        self._constant_of: dict[object, str] = {}
        self._names: dict[Key, str] = {}
        for node in joint.module.graph.nodes:
            if node.target is getitem and isinstance(node.args[1], int):
                self._names.setdefault((cast("fx.Node", node.args[0]).name, node.args[1]), node.name)

    def name(self, key: Key) -> str:
        """The variable of a value."""
        node, index = key
        if not isinstance(self.nodes[node].meta.get("val"), (tuple, list)):
            return node
        return self._names.setdefault(key, f"{node}__{index}")

    def key(self, node: fx.Node) -> Key:
        """The value that a node stands for; a getitem is a result of another node, a detached tensor itself."""
        if node.op == "call_function" and node.name not in self.made:
            if node.target is getitem:
                whole = cast("fx.Node", node.args[0])
                return whole.name, cast("int", node.args[1])
            if node.target in RENAMED:
                return self.key(cast("fx.Node", node.args[0]))
        return node.name, 0

    def constant(self, value: object, hint: str) -> str:
        """A name for a value that has no readable literal."""
        same = ("device", str(value)) if isinstance(value, torch.device) else id(value)
        if same not in self._constant_of:
            self._constant_of[same] = self._named(value, hint)
        return self._constant_of[same]

    def attribute(self, node: fx.Node) -> str:
        """A name for what the graph holds itself under the target of `node`: one for each target, for two that hold the
        same now may hold different things at another call."""
        target = str(node.target)
        if target not in self.attributes:
            self.attributes[target] = self._named(attribute(self.joint.module, target), node.name)
        return self.attributes[target]

    def _named(self, value: object, hint: str) -> str:
        name, number = f"_{hint}", 1
        while name in self.constants or name in self.nodes:
            number += 1
            name = f"_{hint}_{number}"
        self.constants[name] = value  # which also keeps its id from being another's
        return name


RENAMED = frozenset({torch.ops.aten.detach.default, torch.ops.aten.alias.default})
"""What gives its argument once more; autograd is off where the code runs."""
