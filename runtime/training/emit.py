"""Forward and backward of a plan as straight-line Python: one line an operator, in the order of the plan's steps.

What is read is made where it is read: views are cut anew beside their use and never kept across the turn; a value that
the plan keeps somewhere is seen through a view of that place. What is not placed is deleted after its last use. The
text is meant to be read; `Code.source` shows it.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import getitem
from typing import Any, TypeAlias, cast

import torch
from torch import fx

from ...ir.errors import PlanMismatchError
from .functions import Bound, function_of
from .joint import Joint

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


@dataclass(frozen=True)
class Code:
    """`forward(primals)` gives the forward's outputs and what is saved; `backward(saved, tangents)` the gradients.

    Both clear the lists that they are given. `read` names the placeholders that the backward reads. What `hooks` says
    at each moment, the code calls.
    """

    source: str
    forward: Callable[[list[Any]], tuple[list[Any], list[Any]]]
    backward: Callable[[list[Any], list[Any]], list[Any]]
    read: frozenset[str]
    hooks: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Line:
    """`text`, one line or several, with the variables that it reads and writes."""

    text: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


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
    writer = _Writer(joint, calls, place, address)
    backward_lines, read, saved = writer.backward(turn)
    forward_lines = writer.forward(turn, saved)
    source = "\n".join((*_text(forward_lines), "", "", *_text(backward_lines), ""))
    file = f"<tensorstow {name} {next(_numbers)}>"
    namespace: dict[str, Any] = {**hooks, **writer.constants, "torch": torch}
    exec(compile(source, file, "exec"), namespace)  # the text is ours, made of the graph's names and numbers
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return Code(source, namespace["forward"], namespace["backward"], read, namespace)


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


class _Writer:
    """Writes sections; knows the graph, and what each value is called."""

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
            if node.target in _RENAMED:
                return self.key(cast("fx.Node", node.args[0]))
        return node.name, 0

    def constant(self, value: object, hint: str) -> str:
        """A name for a value that has no readable literal."""
        same = ("device", str(value)) if isinstance(value, torch.device) else id(value)
        if same not in self._constant_of:
            name, number = f"_{hint}", 1
            while name in self.constants or name in self.nodes:
                number += 1
                name = f"_{hint}_{number}"
            self.constants[name] = value  # which also keeps its id from being another's
            self._constant_of[same] = name
        return self._constant_of[same]

    def forward(self, turn: int, saved: Sequence[str]) -> list[_Line]:
        """Lines of the forward, which ends with the turn."""
        section = _Section(self)
        given = [p.node for p in self.joint.primals]
        section.begin("def forward(given):", [("given", given)])
        for t, call in enumerate(self.calls[:turn]):
            section.step(t, call)
        if self.calls[turn].advance:
            section.lines.append(_Line(f"advance({turn})"))
        outputs = [section.result(n, turn) for n in self.joint.outputs[: self.joint.forward_outputs]]
        kept = [section.saved(name, turn) for name in saved]
        reads = (*(o for o in outputs if o != "None"), *kept)
        section.lines.append(_Line(f"return [{', '.join(outputs)}], [{', '.join(kept)}]", reads))
        return section.lines

    def backward(self, turn: int) -> tuple[list[_Line], frozenset[str], list[str]]:
        """Lines of the backward, the placeholders that it reads, and the variables that the forward saves for it."""
        section = _Section(self, opened=False)
        tangents = [p.node for p in self.joint.placeholders if p.kind == "tangent"]
        section.alive.update(dict.fromkeys(tangents))
        for t, call in enumerate(self.calls[turn + 1 :], turn + 1):
            section.step(t, call)
        updated = {c.update for c in self.calls if c.update}
        results: list[str] = []
        for primal, node in zip(self.joint.primals, self.joint.outputs[self.joint.forward_outputs :], strict=True):
            results.append("None" if primal.node in updated else section.result(node, len(self.calls)))
        section.lines.append(_Line(f"return [{', '.join(results)}]", tuple(r for r in results if r != "None")))
        saved = list(section.missing)
        head = _Section(self)
        head.begin("def backward(saved, tangents):", [("saved", saved), ("tangents", tangents)])
        read = frozenset(p.node for p in self.joint.primals if p.node in section.minded)
        return [*head.lines, *section.lines], read, saved


class _Section:
    """The lines of a function as they are written. `alive` maps variables to the address that they see, or None;
    `views` says of which variables a view is cut.

    A variable that is read and was never made becomes one that is handed over at the turn where `opened` is False:
    `missing` gathers these, `minded` those of them whose content makes a difference.
    """

    def __init__(self, writer: _Writer, *, opened: bool = True) -> None:
        self.writer = writer
        self.opened = opened
        self.lines: list[_Line] = []
        self.alive: dict[str, int | None] = {}
        self.views: dict[str, tuple[str, ...]] = {}
        self.missing: dict[str, None] = {}
        self.minded: set[str] = set()

    def begin(self, head: str, given: Iterable[tuple[str, Sequence[str]]]) -> None:
        """The head, and the arguments out of the lists that hold them."""
        self.lines.append(_Line(head))
        for source, names in given:
            if names:
                self.lines.append(_Line(f"{', '.join(names)}, = {source}", (), tuple(names)))
            self.lines.append(_Line(f"{source}.clear()"))
            self.alive.update(dict.fromkeys(names))

    def step(self, t: int, call: Call) -> None:
        """What is read, the call, and what becomes of its results."""
        if call.advance:
            self.lines.append(_Line(f"advance({t})"))
        for key, offset in call.places.items():  # what has moved since, and what was cut from it, is stale
            name = self.writer.name(key)
            if self.alive.get(name, offset) != offset:
                self._forget_views_of(name)
                del self.alive[name]
        if call.factor:
            self.lines.append(_Line(f"factor_{t}()  # {call.op}"))
            return
        if call.norm is not None:
            self._use_gradient(t, call, call.norm, "norm")
            return
        if call.update is not None:
            self._use_gradient(t, call, call.update, "update")
            self._rebound(call.update, None)
            return
        node = self.writer.nodes.get(call.op)
        if node is None or node.op != "call_function":
            raise PlanMismatchError(
                f"step {t} of the plan calls '{call.op}', which is no operator of this module's graph; plan again"
            )
        bound = function_of(node)
        text, reads = self._arguments(bound, t, call)
        self.minded.update(r for r in reads if r not in call.ignored)
        names = self._results(node)
        called = f"{self._callee(bound)}({text})" if bound.method is None else text
        self._assign(t, call, node, names, called, reads)

    def _callee(self, bound: Bound) -> str:
        return self.writer.constant(bound.function, bound.name)

    def _arguments(self, bound: Bound, t: int, call: Call) -> tuple[str, tuple[str, ...]]:
        reads: list[str] = []

        def write(value: object) -> str:
            return self._literal(value, t, call, reads)

        args = [write(a) for a in bound.args]
        kwargs = [f"{k}={write(v)}" for k, v in bound.kwargs.items()]
        if bound.method is not None:
            return f"{args[0]}.{bound.method}({', '.join((*args[1:], *kwargs))})", tuple(reads)
        return ", ".join((*args, *kwargs)), tuple(reads)

    def _literal(self, value: object, t: int, call: Call, reads: list[str]) -> str:
        """An argument as text; the variables in it are added to `reads`, made before this line where need be."""
        if isinstance(value, fx.Node):
            name = self.value(value, t, call.places)
            if name not in self.writer.constants:  # which are nobody's to delete
                reads.append(name)
            return name
        if isinstance(value, (list, tuple)):
            parts = ", ".join(self._literal(v, t, call, reads) for v in cast("Sequence[object]", value))
            return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' if len(value) == 1 else ''})"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        if isinstance(value, float) and repr(value).lstrip("-")[0].isdigit():
            return repr(value)
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return str(value)
        return self.writer.constant(value, type(value).__name__.lower())

    def value(self, node: fx.Node, t: int, places: Mapping[Key, int]) -> str:
        """The variable of a value that step `t` reads, made by lines before it where it is not there."""
        writer = self.writer
        if node.op == "get_attr":
            return writer.constant(_attribute(writer.joint.module, str(node.target)), node.name)
        key = writer.key(node)
        name, origin = writer.name(key), writer.nodes[key[0]]
        if key in places:
            self._placed(key, name, places[key])
        elif name in self.alive:
            pass
        elif origin.op == "get_attr":
            return writer.constant(_attribute(writer.joint.module, str(origin.target)), origin.name)
        elif origin.op == "call_function" and origin.name not in writer.made and _is_view(origin):
            self._view(key, name, origin, t, places)
        else:
            self._missing(name, t)
        return name

    def _placed(self, key: Key, name: str, address: int) -> None:
        if self.alive.get(name) != address:
            constant = self.writer.constant(self.writer.place(key, address), f"{name}_at_{address}")
            self.lines.append(_Line(f"{name} = {constant}", (), (name,)))
            self._rebound(name, address)

    def _view(self, key: Key, name: str, node: fx.Node, t: int, places: Mapping[Key, int]) -> None:
        """Cut a view of what is there."""
        bound = function_of(node)
        text, reads = self._arguments(bound, t, Call(node.name, places))
        self.minded.update(reads)
        made = text if bound.method is not None else f"{self._callee(bound)}({text})"
        if isinstance(node.meta.get("val"), (tuple, list)):
            made = f"{made}[{key[1]}]"
        self.lines.append(_Line(f"{name} = {made}", reads, (name,)))
        self._rebound(name, None)
        self.views[name] = reads

    def _missing(self, name: str, t: int) -> None:
        if self.opened:
            raise PlanMismatchError(f"step {t} of the plan reads '{name}' before it is made; plan again")
        self.missing[name] = None
        self.alive[name] = None

    def _rebound(self, name: str, address: int | None) -> None:
        """`name` stands for another tensor now: what was cut from the old one is stale."""
        self._forget_views_of(name)
        self.alive[name] = address

    def _forget_views_of(self, name: str) -> None:
        """Views of `name`, and views of these, are gone."""
        for view, bases in list(self.views.items()):
            if name in bases and view in self.views:
                del self.views[view]
                self.alive.pop(view, None)
                self._forget_views_of(view)

    def _results(self, node: fx.Node) -> list[str | None]:
        """Variables of the results; None for one that is no tensor."""
        value = node.meta.get("val")
        if not isinstance(value, (tuple, list)):
            return [self.writer.name((node.name, 0))]
        parts = enumerate(cast("Sequence[object]", value))
        return [self.writer.name((node.name, i)) if isinstance(v, torch.Tensor) else None for i, v in parts]

    def _assign(
        self, t: int, call: Call, node: fx.Node, names: list[str | None], called: str, reads: tuple[str, ...]
    ) -> None:
        made = tuple(n for n in names if n is not None)
        several = isinstance(node.meta.get("val"), (tuple, list))
        target = ", ".join(n or "_" for n in names) + ("," if several and len(names) == 1 else "")
        text = f"{target} = {called}  # {t}"
        if call.steered:
            one = ", ".join(made)
            strays = [
                f" or {name}.data_ptr() != {self._address(call.places[node.name, i])}"
                for i, name in enumerate(names)
                if name is not None and (node.name, i) in call.places
            ]
            settle = f"if done(){''.join(strays)}: {one}, = settle({t}, {one})" if made else "done()"
            text = f"at({t})\n{text}\n{settle}"
        self.lines.append(_Line(text, reads, made))
        for index, name in enumerate(names):
            if name is not None:
                self._rebound(name, call.places.get((node.name, index)))

    def _address(self, offset: int) -> str:
        """The name of an address of the arena."""
        name = f"_address_{offset}"
        self.writer.constants[name] = self.writer.address + offset
        return name

    def _use_gradient(self, t: int, call: Call, placeholder: str, hook: str) -> None:
        joint = self.writer.joint
        gradient = joint.gradients.get(placeholder)
        if gradient is None:
            raise PlanMismatchError(
                f"step {t} of the plan wants the gradient of '{placeholder}', which has none; plan again"
            )
        name = self.value(gradient, t, call.places)
        self.minded.add(name)
        at, done = (f"at({t})\n", "\ndone()") if call.steered else ("", "")
        self.lines.append(_Line(f"{at}{hook}_{t}({name})  # {call.op}{done}", (name,)))

    def result(self, node: fx.Node | None, t: int) -> str:
        """The variable of a result of the function, or 'None'."""
        if not isinstance(node, fx.Node):
            return "None"
        name = self.value(node, t, {})
        self.minded.add(name)
        return name

    def saved(self, name: str, t: int) -> str:
        """A variable that is handed over at the turn."""
        if name not in self.alive:
            raise PlanMismatchError(f"behind the turn the plan reads '{name}', which is not made before it; plan again")
        return name


_RENAMED = frozenset({torch.ops.aten.detach.default, torch.ops.aten.alias.default})
"""What gives its argument once more; autograd is off where the code runs."""


def _is_view(node: fx.Node) -> bool:
    """Whether all that a node gives lies in the memory of what it is given."""
    given = {_memory(n.meta.get("val")) for n in node.all_input_nodes}
    value = node.meta.get("val")
    parts: Sequence[object] = cast("Sequence[object]", value) if isinstance(value, (tuple, list)) else (value,)
    return all(_memory(v) in given for v in parts if isinstance(v, torch.Tensor))


def _memory(value: object) -> object:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None  # pyright: ignore


def _attribute(module: fx.GraphModule, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    return found


def _text(lines: Sequence[_Line]) -> list[str]:
    """The lines with a `del` behind the last use of each variable."""
    needed: set[str] = set()
    text: list[str] = []
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        touched = dict.fromkeys((*line.reads, *line.writes))
        dead = [] if line.text.startswith("return") else [v for v in touched if v not in needed]
        if dead:
            text.append(f"    del {', '.join(dead)}")
        text += [part if number == 0 else f"    {part}" for part in reversed(line.text.split("\n"))]
        needed.difference_update(line.writes)
        needed.update(line.reads)
    return text[::-1]
