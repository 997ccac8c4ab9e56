"""The registry of strategies, and what every strategy is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from math import isnan
from typing import ClassVar, Protocol, TypeVar

from ..ir.errors import InputError
from ..ir.plan import Plan
from .instance import Instance

MODULES = (
    "order",
    "recompute",
    "baselines",
    "tflite",
    "cosma",
    "traffic",
    "published.offload_all",
    "published.checkpointing",
    "published.torch_knapsack",
    "published.capuchin",
    "published.memo",
    "published.checkmate",
    "published.poet",
    "published.flexgen",
    "published.xla",
    "published.mallocgame",
)
"""The modules that register strategies, ours first: the order in which they are named."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a strategy may take, and the seed of whatever is random in it. InputError: a limit that is no number."""

    time_limit_s: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isnan(self.time_limit_s):
            raise InputError("the time limit is nan seconds, which never end; give a number, like 20")


class Strategy(Protocol):
    """Turns an instance into a plan. A frozen dataclass: its fields are its options."""

    name: ClassVar[str]

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best plan found. InfeasibleError: proven that there is none; TimeLimitError: none was found in time."""
        ...


S = TypeVar("S", bound="type[Strategy]")
_REGISTRY: dict[str, type[Strategy]] = {}


def register(strategy: S) -> S:
    """Class decorator: make a strategy known by its name. A name can be taken once."""
    if strategy.name in _REGISTRY:
        raise ValueError(f"strategy '{strategy.name}' is registered twice")
    _REGISTRY[strategy.name] = strategy
    return strategy


def strategy_names() -> tuple[str, ...]:
    """Names of all registered strategies, in the order of registration: ours first."""
    _load_all()
    return tuple(_REGISTRY)


def strategies(names: Iterable[str]) -> list[Strategy]:
    """Strategies by name, with their default options; InputError for a name that is not registered."""
    _load_all()
    chosen: list[Strategy] = []
    for name in names:
        if name not in _REGISTRY:
            raise InputError(f"no strategy is called '{name}'; there are: {', '.join(_REGISTRY)}")
        chosen.append(_REGISTRY[name]())
    return chosen


def _load_all() -> None:
    """Import the modules that register strategies: here, not on top, as each of them imports this one."""
    found = [import_module(f".{module}", __package__).__name__ for module in MODULES]
    place = {module: n for n, module in enumerate(found)}
    for name in sorted(_REGISTRY, key=lambda n: place.get(_REGISTRY[n].__module__, len(place))):
        _REGISTRY[name] = _REGISTRY.pop(name)
