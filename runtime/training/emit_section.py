"""One function of the text: its lines as they are written, and what is alive between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx

from ...ir.errors import PlanMismatchError
from .emit_calls import Call, Key, Values
from .functions import Bound, function_of
from .joint_graph import is_view


@dataclass(frozen=True, slots=True)
class Line:
    """`text`, one line or several, with the variables that it reads and writes."""

    text: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


class Section:
    """The lines of a function as they are written. `alive` maps variables to the address that they see, or None;
    `views` says of which variables a view is cut.

    A variable that is read and was never made becomes one that is handed over at the turn where `opened` is False:
    `missing` gathers these, `minded` those of them whose content makes a difference.
    """

    def __init__(self, values: Values, *, opened: bool = True) -> None:
        self.values = values
        self.opened = opened
        self.lines: list[Line] = []
        self.alive: dict[str, int | None] = {}
        self.views: dict[str, tuple[str, ...]] = {}
        self.missing: dict[str, None] = {}
        self.minded: set[str] = set()

    def begin(self, head: str, given: Iterable[tuple[str, Sequence[str]]]) -> None:
        """The head, and the arguments out of the lists that hold them."""
        self.lines.append(Line(head))
        for source, names in given:
            if names:
                self.lines.append(Line(f"{', '.join(names)}, = {source}", (), tuple(names)))
            self.lines.append(Line(f"{source}.clear()"))
            self.alive.update(dict.fromkeys(names))

    def step(self, t: int, call: Call) -> None:
        """What is read, the call, and what becomes of its results."""
        if call.advance:
            self.lines.append(Line(f"advance({t})"))
        for key, offset in call.places.items():  # what has moved since, and what was cut from it, is stale
            name = self.values.name(key)
            if self.alive.get(name, offset) != offset:
                self._forget_views_of(name)
                del self.alive[name]
        if call.factor:
            self.lines.append(Line(f"factor_{t}()  # {call.op}"))
            return
        if call.norm is not None:
            self._use_gradient(t, call, call.norm, "norm")
            return
        if call.update is not None:
            self._use_gradient(t, call, call.update, "update")
            self._rebound(call.update, None)
            return
        node = self.values.nodes.get(call.op)
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
        return self.values.constant(bound.function, bound.name)

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
            if name not in self.values.constants:  # which are nobody's to delete
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
        return self.values.constant(value, type(value).__name__.lower())

    def value(self, node: fx.Node, t: int, places: Mapping[Key, int]) -> str:
        """The variable of a value that step `t` reads, made by lines before it where it is not there."""
        values = self.values
        if node.op == "get_attr":
            return values.attribute(node)
        key = values.key(node)
        name, origin = values.name(key), values.nodes[key[0]]
        if key in places:
            self._placed(key, name, places[key])
        elif name in self.alive:
            pass
        elif origin.op == "get_attr":
            return values.attribute(origin)
        elif origin.op == "call_function" and origin.name not in values.made and is_view(origin):
            self._view(key, name, origin, t, places)
        else:
            self._missing(name, t)
        return name

    def _placed(self, key: Key, name: str, address: int) -> None:
        if self.alive.get(name) != address:
            constant = self.values.constant(self.values.place(key, address), f"{name}_at_{address}")
            self.lines.append(Line(f"{name} = {constant}", (), (name,)))
            self._rebound(name, address)

    def _view(self, key: Key, name: str, node: fx.Node, t: int, places: Mapping[Key, int]) -> None:
        """Cut a view of what is there."""
        bound = function_of(node)
        text, reads = self._arguments(bound, t, Call(node.name, places))
        self.minded.update(reads)
        made = text if bound.method is not None else f"{self._callee(bound)}({text})"
        if isinstance(node.meta.get("val"), (tuple, list)):
            made = f"{made}[{key[1]}]"
        self.lines.append(Line(f"{name} = {made}", reads, (name,)))
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
            return [self.values.name((node.name, 0))]
        parts = enumerate(cast("Sequence[object]", value))
        return [self.values.name((node.name, i)) if isinstance(v, torch.Tensor) else None for i, v in parts]

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
        self.lines.append(Line(text, reads, made))
        for index, name in enumerate(names):
            if name is not None:
                self._rebound(name, call.places.get((node.name, index)))

    def _address(self, offset: int) -> str:
        """The name of an address of the arena."""
        name = f"_address_{offset}"
        self.values.constants[name] = self.values.address + offset
        return name

    def _use_gradient(self, t: int, call: Call, placeholder: str, hook: str) -> None:
        joint = self.values.joint
        gradient = joint.gradients.get(placeholder)
        if gradient is None:
            raise PlanMismatchError(
                f"step {t} of the plan wants the gradient of '{placeholder}', which has none; plan again"
            )
        name = self.value(gradient, t, call.places)
        self.minded.add(name)
        at, done = (f"at({t})\n", "\ndone()") if call.steered else ("", "")
        self.lines.append(Line(f"{at}{hook}_{t}({name})  # {call.op}{done}", (name,)))

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


def text_of(lines: Sequence[Line]) -> list[str]:
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
