"""One update by torch's own functional code, on whatever memory its parameter, gradient and states lie in.

The plain loop calls the same functions from `optimizer.step()`; bits are equal because nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter_ns
from typing import Any

import torch
from torch.optim._adafactor import adafactor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from ...ir.optimizer import BLOCK_ELEMENTS, KINDS, Options

Group = Mapping[str, Any]
"""A parameter group of a live optimizer: its options as they are now."""

MOMENTUM = "momentum_buffer"


def call_update(
    kind: str,
    group: Group,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    states: Mapping[str, torch.Tensor],
    step: torch.Tensor | None,
    *,
    first: bool,
) -> None:
    """Update `parameter` and `states` in place; `step` is counted up by torch. `first`: there was no update before."""
    if kind == "SGD":
        _sgd(group, parameter, gradient, states, first=first)
    elif kind == "Adafactor":
        assert step is not None
        _adafactor(group, parameter, gradient, states, step)
    else:
        assert step is not None
        _adam(group, parameter, gradient, states, step)


def _adam(
    group: Group,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    states: Mapping[str, torch.Tensor],
    step: torch.Tensor,
) -> None:
    beta1, beta2 = group["betas"]
    adam(
        [parameter],
        [gradient],
        [states["exp_avg"]],
        [states["exp_avg_sq"]],
        [states["max_exp_avg_sq"]] if group["amsgrad"] else [],
        [step],
        amsgrad=group["amsgrad"],
        has_complex=parameter.is_complex(),
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
        foreach=group["foreach"],
        capturable=group["capturable"],
        differentiable=group["differentiable"],
        fused=group["fused"],
        grad_scale=None,
        found_inf=None,
        decoupled_weight_decay=group["decoupled_weight_decay"],
    )


def _sgd(
    group: Group, parameter: torch.Tensor, gradient: torch.Tensor, states: Mapping[str, torch.Tensor], *, first: bool
) -> None:
    """The first update makes the buffer of its gradient; the buffer goes to where the plan has it.

    torch's code for `foreach` writes Nesterov's sum over the gradient, which may be that of something else too.
    """
    if group["foreach"] and group["nesterov"]:
        gradient = gradient.clone()
    place = states.get(MOMENTUM)
    buffers = [None if first else place]
    sgd(
        [parameter],
        [gradient],
        buffers,
        has_sparse_grad=False,
        foreach=group["foreach"],
        fused=group["fused"],
        grad_scale=None,
        found_inf=None,
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
    )
    if first and place is not None and buffers[0] is not None:
        place.copy_(buffers[0])


def _adafactor(
    group: Group,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    states: Mapping[str, torch.Tensor],
    step: torch.Tensor,
) -> None:
    eps1, eps2 = group["eps"]
    adafactor(
        [parameter],
        [gradient],
        [states.get("row_var")],
        [states.get("col_var")],
        [states.get("variance")],
        [step],
        d=group["d"],
        lr=group["lr"],
        beta2_decay=group["beta2_decay"],
        weight_decay=group["weight_decay"],
        eps1=eps1,
        eps2=eps2,
        foreach=group["foreach"],
        maximize=group["maximize"],
        grad_scale=None,
        found_inf=None,
        has_complex=False,
    )


def new_step(group: Group) -> torch.Tensor:
    """The count of updates of a parameter that had none, as torch makes it on the CPU."""
    if group.get("fused"):
        return torch.zeros((), dtype=torch.float32)
    return torch.tensor(0.0, dtype=torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32)


def blocks(elements: int) -> Iterator[tuple[int, int]]:
    """[0, elements) in ranges of at most `BLOCK_ELEMENTS`; one range where there is nothing."""
    for lo in range(0, max(elements, 1), BLOCK_ELEMENTS):
        yield lo, min(lo + BLOCK_ELEMENTS, elements)


def update_ns(kind: str, options: Options, dtype: str, elements: int, *, passes: int = 3) -> int:
    """Nanoseconds of one update of a parameter of `elements` elements here: the median over `passes`, after one.

    At most sixteen blocks are measured; what is larger takes in proportion. Matrices that Adafactor factors are
    measured as square ones.
    """
    if elements == 0:
        return 1
    measured = min(elements, 16 * BLOCK_ELEMENTS)
    rows = int(measured**0.5) if kind == "Adafactor" else 0
    shape = (rows, measured // rows) if rows > 1 else (measured,)
    torch_dtype = getattr(torch, dtype)
    arrays = [torch.full(shape, 1e-3, dtype=torch_dtype) for _ in range(2)]
    states = {s.key: torch.full(s.shape, 1e-3, dtype=torch_dtype) for s in KINDS[kind].states(options, shape)}
    step = new_step(options)
    taken: list[int] = []
    for _ in range(passes + 1):
        begin = perf_counter_ns()
        run_update(kind, options, arrays[0], arrays[1], states, step, first=False, in_blocks=len(shape) == 1)
        taken.append(perf_counter_ns() - begin)
    return max(1, sorted(taken[1:])[passes // 2] * elements // measured)


def run_update(
    kind: str,
    group: Group,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    states: Mapping[str, torch.Tensor],
    step: torch.Tensor | None,
    *,
    first: bool,
    in_blocks: bool,
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor | None:
    """`call_update`, over the blocks of one-dimensional arrays where `in_blocks`; the count after it. `scale` gives the
    gradient, or a block of it, as it is to be used."""
    if not in_blocks or parameter.numel() <= BLOCK_ELEMENTS:
        counted = None if step is None else step.clone()
        with torch.no_grad():
            scaled = gradient if scale is None else scale(gradient)
            call_update(kind, group, parameter, scaled, states, counted, first=first)
        return counted
    counted = step
    with torch.no_grad():
        for lo, hi in blocks(parameter.numel()):
            counted = None if step is None else step.clone()
            part = {key: state[lo:hi] for key, state in states.items()}
            scaled = gradient[lo:hi] if scale is None else scale(gradient[lo:hi])
            call_update(kind, group, parameter[lo:hi], scaled, part, counted, first=first)
    return counted
