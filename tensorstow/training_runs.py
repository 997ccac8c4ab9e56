"""Running a plan file of a training step on its example batch; are the steps to the bit those without a plan?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hosts import Progress
from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.sizes import format_size
from .verify import Verification

if TYPE_CHECKING:
    from .execute import RunReport
    from .training import TrainingModel

SEED = 0
"""Of PyTorch's generator before the first step, for dropout and its like."""


def run_training(
    file: PlanFile, *, model: Path | None, repeat: int, verify: bool, threads: int | None, progress: Progress
) -> RunReport:
    """One step to warm up, `repeat` that are measured, and with `verify` the same steps of a module made anew, without
    a plan: losses, and then gradients and parameters, or parameters where the step updates them, must be equal."""
    from .execute import RunReport
    from .runtime.memory import peak_rss_nbytes
    from .training import apply_training, remade

    assert file.training is not None
    made = remade(file.training, file, None if model is None else str(model))
    if verify:
        _require_memory(file)
    if not file.fixed_nbytes:
        # What the process takes without the step, tracing included, which comes with its first call.
        made.joint(progress)
        file = replace(file, fixed_nbytes=made.held_beside_nbytes())
    progress("preparing the step", 0.0)
    began = time.perf_counter()
    step = apply_training(file, made.model.module, loss=made.loss, optimizer=made.optimizer, threads=threads)
    load_s = time.perf_counter() - began
    read = written = 0
    with step:

        def counted(number: int) -> None:
            nonlocal read, written
            progress("running", number / (repeat + 1))
            if number:
                read, written = read + step.stats.read_nbytes, written + step.stats.written_nbytes

        losses, times = _steps(step, made, repeat, counted)
        peak = peak_rss_nbytes()
    verified, plain_s = None, None
    if verify:
        progress("running without a plan", 0.0)
        verified, plain_s = _verified(file, model, made, losses, repeat)
    return RunReport(
        file=file,
        load_s=load_s,
        load_nbytes=0,
        measured_s=tuple(times[1:]),
        compute_s=plain_s,
        io_s=None,
        peak_rss_nbytes=peak,
        read_nbytes=read,
        written_nbytes=written,
        verified=verified,
    )


def _steps(
    call: Callable[..., Any], made: TrainingModel, repeat: int, told: Callable[[int], None]
) -> tuple[list[Any], list[float]]:
    """The losses of a first step and `repeat` more, and their seconds."""
    import torch

    torch.manual_seed(SEED)
    losses: list[Any] = []
    times: list[float] = []
    whole = made.optimizer is not None
    for number in range(repeat + 1):
        made.model.module.zero_grad(set_to_none=True)
        began = time.perf_counter()
        loss = call(*made.model.args, **made.model.kwargs)
        if loss.requires_grad:
            loss.backward()
        elif not whole:
            raise InputError(f"'{made.name}' returns a loss that needs no gradient; is anything to be trained?")
        times.append(time.perf_counter() - began)
        losses.append(loss.detach().clone())
        told(number)
    return losses, times


def _verified(
    file: PlanFile, model: Path | None, made: TrainingModel, losses: list[Any], repeat: int
) -> tuple[Verification, float]:
    """The same steps of the plain module, in eager mode, and the median of their seconds. Tracing alone gives some
    modules other bits than eager mode has; where that is so, the reference is PyTorch's own tracing, `aot_eager`."""
    import statistics

    import torch

    found, times = _compared(file, model, made, losses, repeat, "eager")
    reference = f"{repeat + 1} plain steps of PyTorch {torch.__version__}"
    if not found[0]:
        traced, _ = _compared(file, model, made, losses, repeat, "aot_eager")
        if traced[0]:
            found, reference = traced, f"{reference} by aot_eager, which differs from eager mode here"
    return Verification(found[0], found[1], found[0], reference), statistics.median(times[1:])


def _compared(
    file: PlanFile, model: Path | None, made: TrainingModel, losses: list[Any], repeat: int, backend: str
) -> tuple[tuple[bool, float], list[float]]:
    """Whether losses, gradients and parameters equal those of the plain steps, and by how much they differ."""
    import torch

    from .planner.pytorch.mapped import bring_kept
    from .runtime.training.clipping import clip_plain
    from .runtime.training.losses import loss_of
    from .training import remade

    assert file.training is not None
    other = remade(file.training, file, None if model is None else str(model))
    bring_kept(other.model.module, frozenset())
    run = other.model.module if backend == "eager" else torch.compile(other.model.module, backend=backend)
    as_loss, clip = other.loss or loss_of, file.training.clip

    def plain(*args: Any, **kwargs: Any) -> Any:
        loss = as_loss(run(*args, **kwargs))
        if other.optimizer is None:
            return loss
        loss.backward()
        if clip is not None:
            clip_plain(clip, other.model.module)
        other.optimizer.step()
        other.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    expected, times = _steps(plain, other, repeat, lambda number: None)
    pairs = list(zip(losses, expected, strict=True))
    theirs = dict(other.model.module.named_parameters())
    same = True
    for name, parameter in made.model.module.named_parameters():
        pairs.append((parameter.detach(), theirs[name].detach()))
        ours, plains = parameter.grad, theirs[name].grad
        same = same and (ours is None) == (plains is None)
        if ours is not None and plains is not None:
            pairs.append((ours, plains))
    identical = same and all(torch.equal(a, b) for a, b in pairs)
    error = max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())
    return (identical, error), times


def _require_memory(file: PlanFile) -> None:
    """Refuse to verify, before any work, where the plain step does not fit the memory at hand."""
    from .runtime.memory import available_nbytes

    tier = file.machine.units[0].tier
    kept = file.training.kept_nbytes if file.training is not None else 0
    needed, available = 2 * kept + file.graph.nbytes, available_nbytes()
    if needed > available:
        raise InputError(
            f"--verify runs the step once without a budget of {tier}: that takes up to {format_size(needed)}, and "
            f"{format_size(available)} are available; verify on a larger box or outside the memory limit"
        )
