"""Training of modules that do not compile: what autograd saves goes below and comes back, by hooks on saved tensors.

The module runs as it is. Each save is decided by the plan made from a profile of one step (`profile_saved`): it stays,
or it is written behind and its memory let go, to be read again before the backward pass needs it. Bytes that are saved
more than once are kept, written and read once; bytes that are needed while they are still being written are handed on
from memory. Parameters, buffers and small tensors are never touched. A step that does not go as the profiled one did
(control flow that depends on data) is right all the same: what was not planned stays while it fits.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch.autograd.graph import saved_tensors_hooks

from ...ir.paths import cache_dir
from ...ir.saved import SavedPlan
from ..directio import BLOCK
from .saved_contents import can_leave, modified, storage_of, storages_of
from .saved_engine import Engine
from .saved_records import Content, Saved, SavedStats


class SavedTensors:
    """Saves of `module` by `plan`: `with saved.step(): loss = module(*batch)`, then `loss.backward()` as always.

    `folder` is where the scratch file goes, by default the cache. Bits are those of the plain step. Several forward
    passes may be in flight; one that is dropped gives everything back. Raises ExecutionError where the disk is full or
    fails, and ModifiedError where autograd itself would refuse a tensor that was written in place. `close` ends the
    threads and gives the disk back; what is below then cannot be read any more.
    """

    def __init__(self, plan: SavedPlan, module: torch.nn.Module, *, folder: Path | None = None) -> None:
        self.plan = plan
        self.module = module
        self._engine = Engine(plan.capacity_nbytes, folder or cache_dir())
        self._finalizer = weakref.finalize(self, self._engine.close)
        try:
            sizes = (-(-n // BLOCK) * BLOCK for n, c in zip(plan.nbytes, plan.choices, strict=True) if c == "offload")
            self._engine.file.reserve(sum(sizes))
        except BaseException:
            self.close()
            raise

    @contextmanager
    def step(self) -> Generator[None]:
        """A forward pass; the backward pass may come at any time after it."""
        engine = self._engine
        engine.check()
        hooks = _Pass(self, engine)
        with saved_tensors_hooks(hooks.pack, hooks.unpack):
            yield

    @property
    def stats(self) -> SavedStats:
        """What was counted so far."""
        return self._engine.stats()

    def close(self) -> None:
        """End the threads and remove the scratch file; again is allowed."""
        self._finalizer()


class _Pass:
    """One forward pass: how many contents it has saved. What it saved keeps it, and so the threads that move it."""

    def __init__(self, owner: SavedTensors, engine: Engine) -> None:
        self._owner = owner
        self._engine = engine
        self._own = storages_of(owner.module)
        self._count = 0
        self._thread = threading.Lock()  # a module may run parts of itself in threads

    def pack(self, tensor: torch.Tensor) -> object:
        """The pack hook: the tensor itself where it stays out of our hands."""
        if not can_leave(tensor) or storage_of(tensor) in self._own:
            return _Plain(tensor)
        with self._thread:
            found = self._engine.contents.find(tensor)
            content = cast("Content", found) if found is not None else self._new(tensor)
        return self._engine.save(content, tensor, again=found is not None)

    def unpack(self, saved: object) -> torch.Tensor:
        """The unpack hook."""
        if isinstance(saved, _Plain):
            return saved.unpack()
        assert isinstance(saved, Saved)
        return self._engine.read(saved)

    def _new(self, tensor: torch.Tensor) -> Content:
        k, nbytes, plan = self._count, tensor.untyped_storage().nbytes(), self._owner.plan
        self._count += 1
        as_planned = k < len(plan.nbytes) and plan.nbytes[k] == nbytes
        return self._engine.add(tensor, nbytes, plan.choices[k] if as_planned else None)


class _Plain:
    """A tensor that stays, with the check that autograd does not do where there are hooks."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        # Of an output, the tensor itself would hold the node that holds it.
        self.tensor = tensor.detach()
        self.version = tensor._version

    def unpack(self) -> torch.Tensor:
        """The tensor, if it is still what was saved."""
        if self.tensor._version != self.version:
            raise modified(tuple(self.tensor.shape))
        return self.tensor
