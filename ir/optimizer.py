"""What optimizers there are: which options make one, which states each keeps, and what one update costs.

Both sides need this: the planner to place the states, the runtime to find the optimizer as it was planned. Nothing here
imports PyTorch: an optimizer is an object with `param_groups`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .errors import InputError

Options = dict[str, Any]
"""Options of one parameter group by torch's names; numbers, booleans, None, or lists of these."""


@dataclass(frozen=True, slots=True)
class State:
    """A state of one parameter: torch's name for it, and its shape. It has the parameter's dtype.

    `alike`: element i belongs to element i of the parameter, so that it splits as the parameter does.
    """

    key: str
    shape: tuple[int, ...]
    alike: bool = True


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """One class of torch.optim.

    `options` are all that a group may have. `fixed` are those that decide which states there are or which code runs:
    they may not change after planning; the others are read anew at every step. `states` gives the states of a parameter
    of a shape. `temporaries` counts arrays of the parameter's size that an update allocates at most at once.
    `elementwise`: an update of a range of elements gives the bits that the update of all gives.
    """

    name: str
    options: frozenset[str]
    fixed: frozenset[str]
    states: Callable[[Options, tuple[int, ...]], tuple[State, ...]]
    temporaries: Callable[[Options], int]
    elementwise: bool = True


def _adam_states(options: Options, shape: tuple[int, ...]) -> tuple[State, ...]:
    keys = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if options["amsgrad"] else ()))
    return tuple(State(key, shape) for key in keys)


def _sgd_states(options: Options, shape: tuple[int, ...]) -> tuple[State, ...]:
    return (State("momentum_buffer", shape),) if options["momentum"] else ()


def _adafactor_states(options: Options, shape: tuple[int, ...]) -> tuple[State, ...]:
    """A factored second moment: a mean for each row and for each column (Shazeer and Stern, arXiv 1804.04235)."""
    if len(shape) < 2:
        return (State("variance", shape),)
    return (
        State("row_var", (*shape[:-1], 1), alike=False),
        State("col_var", (*shape[:-2], 1, shape[-1]), alike=False),
    )


def _adam_temporaries(options: Options) -> int:
    """The square root and its quotient; beside them, with a penalty or a sign, the gradient that is meant."""
    coupled = bool(options["weight_decay"]) and not options.get("decoupled_weight_decay", False)
    return 2 + coupled + bool(options["maximize"])


def _sgd_temporaries(options: Options) -> int:
    """The gradient that is meant, the first buffer, Nesterov's sum."""
    return 1 + bool(options["weight_decay"]) + bool(options["maximize"]) + bool(options["nesterov"])


def _adafactor_temporaries(options: Options) -> int:
    """Squares, the estimate of the variance, the update and what it is scaled to."""
    return 4 + bool(options["maximize"])


_CODE = frozenset({"foreach", "fused", "capturable", "differentiable"})
_COMMON = frozenset({"params", "lr", "weight_decay", "maximize", "foreach"})
_ADAM = _COMMON | _CODE | {"betas", "eps", "amsgrad", "decoupled_weight_decay"}

KINDS: Mapping[str, OptimizerKind] = {
    kind.name: kind
    for kind in (
        OptimizerKind("AdamW", _ADAM, _CODE | {"amsgrad", "decoupled_weight_decay"}, _adam_states, _adam_temporaries),
        OptimizerKind("Adam", _ADAM, _CODE | {"amsgrad", "decoupled_weight_decay"}, _adam_states, _adam_temporaries),
        OptimizerKind(
            "SGD",
            _COMMON | (_CODE - {"capturable"}) | {"momentum", "dampening", "nesterov"},
            _CODE,
            _sgd_states,
            _sgd_temporaries,
        ),
        OptimizerKind(
            "Adafactor",
            _COMMON | {"beta2_decay", "eps", "d"},
            frozenset({"foreach"}),
            _adafactor_states,
            _adafactor_temporaries,
            elementwise=False,
        ),
    )
}

_REFUSED: Mapping[str, str] = {
    "differentiable": "gradients cannot flow through an update that is part of the step",
    "capturable": "the step is not captured as a CUDA graph",
}
_SCHEDULED = frozenset({"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "swa_epoch"})
"""What torch's schedulers note in a group for themselves."""


def kind_of(optimizer: Any) -> OptimizerKind:
    """The kind of a live torch.optim object. Raises InputError for one whose updates are not known here."""
    cls = type(optimizer)
    known = KINDS.get(cls.__name__)
    if known is None or not cls.__module__.startswith("torch.optim"):
        raise InputError(
            f"optimizer {cls.__module__}.{cls.__name__} cannot be part of a planned step; there are "
            f"{', '.join(KINDS)} of torch.optim. Plan without `optimizer` and call its step() after the backward"
        )
    return known


def options_of(optimizer: Any) -> tuple[Options, ...]:
    """The options of each parameter group as plain values, by torch's names and without the parameters.

    A learning rate or beta that is a tensor counts as its number, as torch's own code takes it on the CPU. Raises
    InputError, with the group, for an option that is not known or that a planned step cannot honour.
    """
    kind = kind_of(optimizer)
    return tuple(
        _options(kind, number, group) for number, group in enumerate(cast("Sequence[Options]", optimizer.param_groups))
    )


def _options(kind: OptimizerKind, number: int, group: Options) -> Options:
    where = f"parameter group {number} of {kind.name}"
    unknown = sorted(set(group) - kind.options - _SCHEDULED - {"param_names"})
    if unknown:
        raise InputError(f"{where} has options {unknown}, which no planned step knows; plan without `optimizer`")
    missing = sorted(kind.options - set(group))
    if missing:
        raise InputError(f"{where} lacks the options {missing}; make it with this version of torch.optim.{kind.name}")
    for option, why in _REFUSED.items():
        if group.get(option):
            raise InputError(f"{where} has {option}=True: {why}; set it to False or plan without `optimizer`")
    return {name: _plain(f"{where}, '{name}'", group[name]) for name in sorted(kind.options - {"params"})}


def _plain(where: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}; give a finite number")
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(where, v) for v in cast("Sequence[Any]", value)]
    if hasattr(value, "item") and getattr(value, "numel", lambda: 0)() == 1:
        return _plain(where, value.item())
    raise InputError(f"{where} is {type(value).__name__}, of which a planned step knows no meaning; give a number")


def fixed_of(kind: OptimizerKind, options: Options) -> Options:
    """What of a group's options may not change after planning."""
    fixed = {name: options[name] for name in kind.fixed if name in options}
    if kind.name == "SGD":
        fixed["momentum"] = bool(options["momentum"])  # its value may change, but there is a buffer or there is none
    return fixed


def splits(kind: OptimizerKind, options: Options, dtype: str) -> bool:
    """Whether an update of a range of elements gives the bits that the update of the whole parameter gives.

    Measured with torch 2.13 on x86-64: in float32 and float64 each operation of the plain code gives an element the
    same bits wherever it stands in its array. In half precision an addition with a factor rounds once in the vector
    loop and twice in the loop for the rest, so that bits depend on where a thread's share ends; so do they in the
    fused kernels. Adafactor takes means over rows, columns and the whole.
    """
    return kind.elementwise and dtype in ("float32", "float64") and not options.get("fused")


def groups_text(options: Sequence[Options]) -> tuple[str, ...]:
    """Each group's options as canonical JSON."""
    return tuple(json.dumps(o, sort_keys=True, separators=(",", ":")) for o in options)


def groups_from_text(groups: Sequence[str]) -> tuple[Options, ...]:
    """What `groups_text` was given."""
    return tuple(json.loads(text) for text in groups)


BLOCK_ELEMENTS = 1 << 20
"""An update that may be split runs over blocks of at most this many elements, one after another: its temporaries are
then of that size, and in float32 parameter, gradient, states and temporaries of a block together stay in the last-level
cache of a server core, where one pass over all of them would come from memory fifteen times."""


def temporaries_nbytes(kind: OptimizerKind, options: Options, dtype: str, elements: int, itemsize: int) -> int:
    """What one update allocates at most while it runs, in bytes."""
    at_once = min(elements, BLOCK_ELEMENTS) if splits(kind, options, dtype) else elements
    return kind.temporaries(options) * at_once * itemsize


def refuse_wrapped(module: Any) -> None:
    """InputError where gradients are not complete when the backward has made them: each process has a part of them."""
    names = {c.__name__ for part in module.modules() for c in type(part).__mro__}
    names |= {c.__name__ for p in module.parameters() for c in type(p).__mro__}
    found = sorted(names & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DTensor"})
    if found:
        raise InputError(
            f"the module is wrapped ({', '.join(found)}): its gradients are summed over processes behind the backward, "
            "so no update can be part of it; plan without `optimizer` and call its step() after the backward"
        )
