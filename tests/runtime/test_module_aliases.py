"""Tests of runtime/module/: nothing that a module gets or returns lies in memory that the plan fills anew."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from tensorstow.runtime.module.computing import only_computes
from tensorstow.runtime.module.functions import MAKE_NEW
from tensorstow.runtime.module.lazy_values import detached
from tensorstow.runtime.module.weights import Weights

from .recorded import record

pytestmark = pytest.mark.usefixtures("one_thread")


class Turned(nn.Module):
    """Views of its weight made by `einsum`, used when another layer has run since."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.others = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        turned = torch.einsum("oi->io", self.weight)
        across = torch.einsum("ii->i", [self.weight])
        product = torch.einsum("bi,oi->bo", x, self.weight)
        for other in self.others:
            x = other(x)
        return x @ turned + product, turned, across


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_an_einsum_of_one_weight_stays_right(tmp_path: Path, share: float) -> None:
    torch.manual_seed(0)
    module, x = Turned().eval(), torch.randn(3, 64)
    with torch.no_grad():
        expected = [t.clone() for t in module(x)]
    with record(module, lambda: module(x), tmp_path).execute(share) as executor:
        weights: Weights = executor._weights  # pyright: ignore[reportPrivateUsage]
        for _ in range(3):
            found = module(x)
            module.others[1](x)
            for a, b in zip(found, expected, strict=True):
                assert torch.equal(a, b)
                assert type(a) is not torch.Tensor or not weights.in_arena(a)


def test_functions_that_make_something_new_do_so() -> None:
    """Those whose results are not looked at, on operands for which others of their kind return one of them."""
    one, zero = torch.ones(()), torch.zeros(())
    square = torch.ones(1, 1)
    image = torch.ones(1, 1, 1, 1)
    normed = {"normalized_shape": (1,)}
    for func in MAKE_NEW:
        name, calls = getattr(func, "__name__", str(func)), []
        if "conv" in name:
            shape = image.reshape((1,) * (2 + int(name[4])))
            calls = [((shape, shape), {})]
        elif name in ("layer_norm", "rms_norm"):
            calls = [((square,), normed)]
        elif name == "group_norm":
            calls = [((torch.ones(1, 1, 2), 1), {})]
        elif "cat" in name:
            calls = [(([square],), {}), (([square, torch.empty(0)],), {})]
        elif name == "bmm":
            calls = [((image[0], image[0]), {})]
        elif name == "addmm":
            calls = [((square, square, square), {"beta": 1, "alpha": 0})]
        elif name in ("clone", "exp"):
            calls = [((square,), {}), ((zero,), {})]
        elif "grouped_mm" in name:
            wide = torch.ones(16, 16, dtype=torch.bfloat16)
            calls = [((wide, wide[None]), {"offs": torch.tensor([16], dtype=torch.int32)})]
        elif name in ("mul", "__mul__", "__rmul__", "add", "__add__", "__rsub__"):
            calls = [((square, 1), {}), ((square, 0), {}), ((square, one), {}), ((square, zero), {})]
        else:
            calls = [((square, square), {})]
        for args, kwargs in calls:
            operands = [*args[0]] if isinstance(args[0], list) else [a for a in args if isinstance(a, torch.Tensor)]
            result = func(*args, **kwargs)
            assert all(result.data_ptr() != o.data_ptr() for o in operands), name


class Named(nn.Module):
    """Leaves with weights real while they run, which return one of them in something."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width, width))
        self.table = nn.Parameter(torch.randn(width, width))


class InDictionary(Named):
    def forward(self, x: torch.Tensor) -> Any:
        return {"h": x @ torch.stack([self.scale, self.table]).sum(0), "more": [{"table": self.table}], "n": 3}


class InBuiltDictionary(Named):
    def forward(self, x: torch.Tensor) -> Any:
        return dict(h=x @ torch.stack([self.scale, self.table]).sum(0), more=[dict(table=self.table)], n=3)  # noqa: C408 - what is tested


class InIterator(Named):
    def forward(self, x: torch.Tensor) -> Any:
        return zip((x @ torch.stack([self.scale, self.table]).sum(0),), (self.table,), strict=True)


class InNumbered(Named):
    def forward(self, x: torch.Tensor) -> Any:
        return enumerate((x @ torch.stack([self.scale, self.table]).sum(0), self.table))


class InSet(Named):
    def forward(self, x: torch.Tensor) -> Any:
        return {x @ torch.stack([self.scale, self.table]).sum(0), self.table}


class InSlice(Named):
    def forward(self, x: torch.Tensor) -> Any:
        return slice(x @ torch.stack([self.scale, self.table]).sum(0), self.table)


class Around(nn.Module):
    """Uses what its part returned when other layers have run since."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.part(x)
        if isinstance(made, dict):
            x, table = made["h"], made["more"][0]["table"]
            assert made["n"] == 3
        elif isinstance(made, set):
            x, table = sorted(made, key=len)
        else:
            for layer in self.layers:
                layer(x)
            if isinstance(made, slice):
                x, table = made.start, made.stop
            else:
                found = list(made)
                x, table = found[0] if len(found) == 1 else (pair[1] for pair in found)
        for layer in self.layers:
            x = layer(x)
        return x @ table


@pytest.mark.parametrize("kind", [InDictionary, InBuiltDictionary, InIterator, InNumbered, InSet, InSlice])
def test_what_a_part_returns_in_something_stays_right(tmp_path: Path, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = Around(kind()).eval(), torch.randn(3, 64)
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(0.0):
        for _ in range(3):
            assert torch.equal(module(x), expected)


def test_dictionaries_cost_a_part_nothing() -> None:
    """Its weights are real while it runs, as those of parts that return tensors."""
    assert only_computes(InDictionary()) and only_computes(InBuiltDictionary())
    assert not only_computes(InIterator()) and not only_computes(InSet())


class Pair(NamedTuple):
    first: Any
    second: Any


def test_what_is_detached_keeps_its_type(tmp_path: Path) -> None:
    module, x = Turned().eval(), torch.randn(3, 64)
    with record(module, lambda: module(x), tmp_path).execute(0.4) as executor:
        weights: Weights = executor._weights  # pyright: ignore[reportPrivateUsage]
        source = module.weight.source  # type: ignore[union-attr]
        module(x)
        with weights.using:
            weights.inside.calls += 1
            real = weights.resolve([source])[0]
            weights.inside.calls -= 1
            assert weights.in_arena(real)
            for given in (OrderedDict(a=real, b=x), Pair(real, x), (real, x), [real, x], {"a": real, "b": x}):
                made: Any = detached(given, weights, {source: real})
                assert type(made) is type(given)
                first, second = made.values() if isinstance(made, dict) else made
                assert second is x and first is not real
            for given in (OrderedDict(b=x), Pair(x, 1), {"b": {"x": x}}):
                assert detached(given, weights, {source: real}) is given


def test_weights_of_two_plans_in_one_operator(tmp_path: Path) -> None:
    class Lone(nn.Module):
        def __init__(self, layers: int) -> None:
            super().__init__()
            self.before = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers))
            self.weight = nn.Parameter(torch.randn(64, 64))
            self.after = nn.Linear(64, 64)
            self.other: list[nn.Module] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.before:
                x = layer(x)
            weight = self.weight
            if self.other:
                other: Any = self.other[0].weight
                weight = torch.add(weight, other) + torch.add(other, weight)
            return self.after(x @ weight)

    torch.manual_seed(0)
    other, module, x = Lone(1).eval(), Lone(4).eval(), torch.randn(3, 64)
    for name in "one", "two":
        (tmp_path / name).mkdir()
    second = record(other, lambda: other(x), tmp_path / "two")
    first = record(module, lambda: module(x), tmp_path / "one")
    module.other.append(other)
    with torch.no_grad():
        expected = module(x)
    with first.execute(0.0), second.execute(0.0):
        for _ in range(3):
            other(x)
            assert torch.equal(module(x), expected)
