"""What a process that trains by a plan holds beside what the plan counts: interpreter, libraries, traces."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from .ir.files import PlanFile

if TYPE_CHECKING:
    from .runtime.training.joint_graph import Joint
    from .training import TrainingModel


def held_beside_nbytes(model: TrainingModel) -> int:
    """Bytes that this process has resident beside what a plan of `model` counts (parameters, buffers, batch, gradients,
    the optimizer's states), once the step was traced, its code written, and a product computed, which loads kernels:
    what a process that applies the plan holds, too."""
    import torch

    from .runtime.memory import current_rss_nbytes, trim_heap
    from .runtime.training.emit import emit_plain

    if "joint" in model.known:
        emit_plain(model.joint())
    torch.mm(torch.ones(_PRODUCT, _PRODUCT), torch.ones(_PRODUCT, _PRODUCT))
    gc.collect()
    trim_heap()
    return max(0, current_rss_nbytes() - counted_nbytes(model))


_PRODUCT = 256
"""Rows and columns of matrices that are large enough for the kernels of large ones."""


def counted_nbytes(model: TrainingModel, *, gradients: bool = True) -> int:
    """Bytes in memory, each once, of what the plan counts; without `gradients` of parameters but not of these."""
    import torch

    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in _counted(model, gradients)
        if isinstance(t, torch.Tensor) and t.device.type == "cpu" and t.layout is torch.strided
    }
    return sum(storages.values())


def untouched_nbytes(module: Any, joint: Joint) -> int:
    """Bytes of parameters and buffers that the step does not touch: they are in memory, too."""
    used = {n.name for n in joint.module.graph.find_nodes(op="placeholder") if n.users}
    placeholders = [p for p in joint.placeholders if p.node in used and p.kind in ("parameter", "buffer")]
    touched = {n for p in placeholders for n in p.names}
    held = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    seen = {id(t) for n, t in held if n in touched}
    rest = {id(t): t for _, t in held if id(t) not in seen}
    return sum(t.numel() * t.element_size() for t in rest.values())


def _counted(model: TrainingModel, gradients: bool) -> Iterator[Any]:
    from torch.utils import _pytree as pytree

    from .runtime.training.consumed import ConsumedGradient

    module = model.model.module
    for parameter in module.parameters():
        yield parameter.detach()
        if gradients and not isinstance(parameter.grad, ConsumedGradient):
            yield parameter.grad
    yield from module.buffers()
    yield from pytree.tree_leaves((model.model.args, model.model.kwargs))
    if model.optimizer is not None:
        yield from pytree.tree_leaves([dict(s) for s in cast("dict[Any, Any]", model.optimizer.state).values()])


def rehearse_training(file: PlanFile) -> None:
    """Make the plan's module again, and take a step: then this process has had at once all that such a process has."""
    from .training import apply_training, remade

    assert file.training is not None
    made = remade(file.training, file, None)
    with apply_training(file, made.model.module, loss=made.loss, optimizer=made.optimizer, threads=None) as step:
        loss = step(*made.model.args, **made.model.kwargs)
        if loss.requires_grad:
            loss.backward()


def set_up_training(file: PlanFile) -> int:
    """Peak bytes of this process beside what the plan counts, with the module made and its step traced, but not run."""
    from .runtime.memory import peak_rss_nbytes
    from .training import remade

    assert file.training is not None
    made = remade(file.training, file, None)
    made.joint()
    return max(0, peak_rss_nbytes() - counted_nbytes(made))
