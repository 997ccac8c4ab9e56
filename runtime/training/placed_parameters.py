"""Parameters that a plan places: their home is the store on disk, and the module finds them wherever they are.

In a step the code reads parameters at their planned addresses, and their updates change them there. Between steps the
module's own parameters are ordinary tensors that show the last content: in the arena where memory has the only copy of
it, else in the file, whose pages come as they are read and are the system's to take back. So whatever reads parameters
between steps (an evaluation, a norm, a checkpoint) is right. What is written to them in place is noticed by PyTorch's
count of writes, and taken in before the next step; writing through `.data` is not noticed, nor is it by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import MADV_DONTNEED, mmap
from typing import Any

import torch
from torch import nn

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph, Tensor
from ...ir.program import Parameter, TrainingProgram
from ..passes import PlanMemory
from .state_store import StateStore
from .versions import Version, changed_storages, last_versions


@dataclass(slots=True)
class Placed:
    """A parameter, all modules that hold it with its name there, and its bytes at home.

    `rests` is where its last content is between two steps, if that is memory; `parts` are the pieces of it that memory
    has the only copy of, where there are others that it has not: these are stored behind every step. `pages` is the
    mapping that `home` is in. `seen` is the count of writes that is known of.
    """

    names: tuple[str, ...]
    tensor: nn.Parameter
    holders: tuple[tuple[nn.Module, str], ...]
    planned: Tensor
    blob: str
    home: torch.Tensor
    pages: mmap
    rests: torch.Tensor | None = None
    parts: tuple[Version, ...] = field(default=())
    seen: int = 0

    def show(self, content: torch.Tensor) -> None:
        """The module's parameter is from now on what lies there."""
        self.tensor.data = content
        self.seen = self.tensor._version


class PlacedParameters:
    """The parameters that `program` places, of the live `module`. The constructor refuses those that are not as they
    were planned (PlanMismatchError), and changes nothing."""

    def __init__(self, graph: Graph, program: TrainingProgram, module: nn.Module) -> None:
        self._graph = graph
        self._found = [self._live(graph, p, module) for p in program.parameters]
        self._placed: list[Placed] = []
        self._hooks: list[Any] = []
        self._store: StateStore | None = None
        self._memory: PlanMemory | None = None
        self.storages = frozenset(graph.tensor[p.tensor].storage or "" for p in program.parameters)

    def _live(
        self, graph: Graph, planned: Parameter, module: nn.Module
    ) -> tuple[Parameter, nn.Parameter, tuple[tuple[nn.Module, str], ...]]:
        """The parameter, and all that hold it."""
        tensor = graph.tensor[planned.tensor]
        holders: list[tuple[nn.Module, str]] = []
        for name in planned.names:
            owner, _, own = name.rpartition(".")
            try:
                holders.append((module.get_submodule(owner), own))
            except AttributeError as error:
                raise PlanMismatchError(f"the plan places '{name}', which the module has not; plan again") from error
        held = (getattr(owner, own, None) for owner, own in holders)
        found = {id(p): p for p in held if isinstance(p, nn.Parameter)}
        if len(found) != 1 or len(holders) != len(planned.names):
            raise PlanMismatchError(
                f"{', '.join(planned.names)} were one parameter when the plan was made and are {len(found)}; plan again"
            )
        (live,) = found.values()
        nbytes = live.numel() * live.element_size()
        if tuple(live.shape) != tensor.shape or nbytes != tensor.nbytes or live.device.type != "cpu":
            raise PlanMismatchError(
                f"parameter '{planned.names[0]}' is {list(live.shape)} of {live.dtype} on {live.device}, the plan has "
                f"{list(tensor.shape or ())} of {tensor.dtype} ({tensor.nbytes} bytes) on the CPU; plan again"
            )
        if planned.strides is not None and tuple(live.stride()) != planned.strides:
            raise PlanMismatchError(
                f"parameter '{planned.names[0]}' has strides {tuple(live.stride())}, the plan has {planned.strides}; "
                "plan again"
            )
        return planned, live, tuple(holders)

    def move(self, store: StateStore, bring_home: Callable[[], None]) -> None:
        """Store the parameters, one after the other, and let go of their memory. `bring_home` is to store all of which
        memory has the only copy, and to call `at_home`; a `state_dict` of the module calls it first."""
        self._store = store
        for planned, live, holders in self._found:
            tensor = self._graph.tensor[planned.tensor]
            blob = self._graph.storage[tensor.storage or ""].blob or ""
            store.write(blob, tensor.offset, flat_bytes(live))
            pages = store.mapped(blob)
            home = like(live, memoryview(pages)[tensor.offset :])
            placed = Placed(planned.names, live, holders, tensor, blob, home, pages)
            placed.show(home)
            self._placed.append(placed)
        owners = {id(owner): owner for placed in self._placed for owner, _ in placed.holders}
        self._hooks = [
            owner.register_state_dict_pre_hook(lambda *_: bring_home())  # type: ignore[no-untyped-call]
            for owner in owners.values()
        ]

    def bind(self, memory: PlanMemory) -> None:
        """From now on steps change them where `memory` has them."""
        self._memory = memory
        changed = changed_storages(memory.plan, memory.graph)
        total = len(memory.plan.steps)
        ended = [(route, int(route.transfer.before <= total)) for route in memory.routes]
        for p in self._placed:
            storage = self._graph.storage[p.planned.storage or ""]
            if storage.id not in changed:
                continue
            versions = list(last_versions(memory.plan, storage, changed[storage.id], memory.tier, total, ended))
            above = tuple(v for v in versions if v.offset is not None)
            bases = {v.offset - v.lo for v in above if v.offset is not None}
            if above and len(above) == len(versions) and len(bases) == 1:
                p.rests = like(p.tensor, memory.arena.view(bases.pop() + p.planned.offset, p.planned.nbytes))
            else:
                p.parts = above

    def view(self, name: str, step: int) -> torch.Tensor | None:
        """The parameter with this name in the arena at a step that uses it; None for one that is not placed."""
        p = next((p for p in self._placed if name in p.names), None)
        if p is None:
            return None
        assert self._memory is not None
        offset = self._memory.addresses.of_tensor(p.planned, step)
        return like(p.tensor, self._memory.arena.view(offset, p.planned.nbytes))

    def at_home(self) -> None:
        """All content is at home."""
        for p in self._placed:
            p.show(p.home)

    def rest(self) -> None:
        """A pass is complete: the last content is where the plan has it between passes."""
        if any(p.parts for p in self._placed):
            assert self._memory is not None and self._store is not None
            self._memory.settle()
            for p in self._placed:
                for part in p.parts:
                    assert part.offset is not None
                    self._store.write(p.blob, part.lo, self._memory.arena.view(part.offset, part.hi - part.lo))
        for p in self._placed:
            if p.rests is not None:
                p.show(p.rests)

    def begin(self) -> None:
        """Before a step: what was read of the file between steps leaves this process's memory. InputError where the
        module holds other parameters now."""
        for p in self._placed:
            p.pages.madvise(MADV_DONTNEED)
            for owner, own in p.holders:
                if getattr(owner, own, None) is not p.tensor:
                    raise InputError(
                        f"parameter '{p.names[0]}' was replaced by another object after the plan was applied; close "
                        "the step, and apply the plan again"
                    )

    def written(self) -> bool:
        """Whether somebody wrote parameters since the last step, so that memory has to be filled from home again.

        What was written lies where the parameter was seen. It goes home, and into what memory has of it, which may be
        on its way home already.
        """
        found = [p for p in self._placed if p.tensor._version != p.seen or not self._is_shown(p)]
        if found and self._memory is not None and not self._memory.closed:
            self._memory.settle()
        for p in found:
            shown = p.rests if p.rests is not None and self._lies_at(p, p.rests) else p.home
            if not self._is_shown(p):  # set to memory of its own
                shown.copy_(p.tensor.detach())
            p.show(shown)
            if shown is not p.home:
                assert self._store is not None
                self._store.write(p.blob, p.planned.offset, flat_bytes(shown))
            for part in p.parts:
                assert part.offset is not None and self._memory is not None
                content = flat_bytes(p.home)[part.lo : part.hi]
                self._memory.arena.view(part.offset, part.hi - part.lo)[:] = content
        return bool(found)

    def _is_shown(self, p: Placed) -> bool:
        return self._lies_at(p, p.home) or (p.rests is not None and self._lies_at(p, p.rests))

    def _lies_at(self, p: Placed, content: torch.Tensor) -> bool:
        return p.tensor.data_ptr() == content.data_ptr()

    def release(self) -> None:
        """Leave the module alone from here on. Its parameters are those at home, as long as it holds them."""
        self._memory = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for p in self._placed:
            p.show(p.home)
            p.rests, p.parts = None, ()


def like(tensor: torch.Tensor, memory: memoryview) -> torch.Tensor:
    """`memory` in the form of a tensor without gaps."""
    count = tensor.numel()
    found = torch.frombuffer(memory, dtype=tensor.dtype, count=count) if count else torch.empty(0, dtype=tensor.dtype)
    return found.as_strided(tuple(tensor.shape), tuple(tensor.stride()))


def flat_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor without gaps."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
