"""Layers of experts that stay in the store, and are read as the tokens choose them, into a cache of slots.

A module with fused experts (parameters [experts, ...]) computes by the loop over experts that transformers calls
'eager', on slices that lie in slots: the same operators on the same numbers in the same order, so the same bits. A
module list of experts is left as it is; each expert finds its parameters in a slot while it runs. What a call asks for
in a layer is one event (`ExpertCache`): its reads all begin at once, and while the layer computes, what the next layer
will probably ask for is read.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...ir.errors import InputError
from ...ir.program import ExpertCaching, ExpertLayer
from . import forwards
from .experts_ahead import Followers, foresee
from .experts_bind import Held, Slices, expert_pieces, held_by_experts
from .experts_cache import ExpertCache
from .experts_recall import make_worths
from .experts_record import ListCall
from .experts_slots import ExpertSlots
from .experts_stats import ExpertStats, Noted
from .experts_worth import Worth
from .functions import refuse_write
from .readers import started_pool
from .replaced import Forward, Replaced

READERS = 4
"""Threads that read experts."""

Routing = Callable[[int, "NDArray[np.int64]", "NDArray[np.float32] | None"], None]
"""What somebody who records is told: the layer's number, ids [tokens, top_k], and gates of that shape or None."""


@dataclass(frozen=True)
class LayerExperts:
    """One layer: expert e of it is object `first` + e of `cache`, whose places are `slots`."""

    number: int
    about: ExpertLayer
    cache: ExpertCache
    slots: ExpertSlots
    first: int

    def objects(self, experts: Sequence[int]) -> list[int]:
        """As the cache calls them."""
        return [self.first + e for e in experts]


class ExpertForwards:
    """The forwards of the layers of `reading` of `module`, which a ModuleExecutor has taken before.

    `stats` counts all layers together; `first` is what stood there when the last layer was first done, None before
    that: a pass that began with empty caches. Raises PlanMismatchError and InputError, with the module untouched, where
    it is not the one that was planned; ExecutionError where memory or threads are short.
    """

    def __init__(self, module: nn.Module, reading: ExpertCaching, *, tier: str = "dram") -> None:
        _check(reading)
        modules = dict(module.named_modules(remove_duplicate=False))
        weights, pieces = expert_pieces(modules, reading.layers)
        self.reading = reading
        self.stats = ExpertStats()
        self.first: ExpertStats | None = None
        self.layers: tuple[LayerExperts, ...] = ()
        self._weights = weights
        self._followers = Followers([layer.experts for layer in reading.layers])
        self._record: Routing | None = None
        self._noted: list[Noted] | None = None
        self._call: ListCall | None = None
        self._told_nbytes = 0
        self._lock = threading.RLock()
        self._replaced = Replaced()
        self._slots: list[ExpertSlots] = []
        self._worths: list[Worth] = []
        self._pool = started_pool(READERS, "experts")
        try:
            groups = [list(range(len(pieces)))] if reading.shared else [[number] for number in range(len(pieces))]
            for group, worth in zip(groups, make_worths(reading), strict=True):
                together = [expert for number in group for expert in pieces[number]]
                slots = min(reading.slots, len(together))
                self._add(group, ExpertSlots(weights, together, slots, self.stats, tier=tier), worth)
        except BaseException:
            self.close()
            raise
        for layer in self.layers:
            self._install(modules, layer)

    def _add(self, group: Sequence[int], slots: ExpertSlots, worth: Worth) -> None:
        self._slots.append(slots)
        self._worths.append(worth)
        cache = ExpertCache(len(slots.experts), slots.slots, slots.load, self._pool, stats=self.stats, worth=worth)
        first = 0
        for number in group:
            about = self.reading.layers[number]
            self.layers = (*self.layers, LayerExperts(number, about, cache, slots, first))
            first += about.experts

    def __enter__(self) -> ExpertForwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory_nbytes(self) -> int:
        """Of all slots and of what is remembered."""
        return sum(x.nbytes for x in (*self._slots, *self._worths, self._followers))

    def record(self, routing: Routing | None) -> None:
        """From now on tell `routing` what routers choose; None ends that. Of lists of experts that is told by the rows
        that their experts are given; a call in which these are other ones raises InputError."""
        self._record = routing

    def note(self) -> list[Noted]:
        """A list of what `stats` are now, and from now on are whenever a layer's event is over."""
        self._noted = [(-1, replace(self.stats))]
        return self._noted

    def close(self) -> None:
        """Put the forwards back, end the threads and give the memory back; again is allowed."""
        with self._lock:
            self._replaced.put_back()
            self._pool.shutdown(cancel_futures=True)
            for slots in self._slots:
                slots.close()

    def _install(self, modules: dict[str, nn.Module], layer: LayerExperts) -> None:
        part = modules[layer.about.module]
        if layer.about.fused:
            self._replaced.replace(part, lambda _: forwards.part(self._weights, part, self._fused(part, layer)))
            return
        for number, expert in enumerate(part.children()):
            held = held_by_experts(expert, layer.about.parameters)
            self._replaced.replace(expert, lambda own, n=number, h=held: self._listed(layer, n, h, own))
        owner = modules[layer.about.module.rpartition(".")[0]]
        self._replaced.replace(owner, lambda original: self._owner(layer, original))

    def _fused(self, part: nn.Module, layer: LayerExperts) -> Forward:
        """The eager loop of the module's class over slices in slots."""
        eager: Forward = type(part).forward.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]
        _, _, ids_name, gates_name = list(inspect.signature(eager).parameters)[:4]
        held: dict[str, Any] = part._parameters  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
        names = layer.about.parameters
        lazies = {name: held[name] for name in names}
        slices = {
            name: Slices(lazies[name], lambda e, k=k: layer.slots.tensor(layer.first + e, k, self._slot(layer, e)))
            for k, name in enumerate(names)
        }

        def forward(*args: Any, **kwargs: Any) -> Any:
            ids = args[1] if len(args) > 1 else kwargs[ids_name]
            gates = args[2] if len(args) > 2 else kwargs.get(gates_name)
            with self._lock:  # before the look, for another thread may be here
                if any(held.get(name) is not lazies[name] for name in names):
                    return eager(part, *args, **kwargs)  # somebody has put others there
                self._weights.memory.check_open()
                try:
                    self._begin(layer, ids, gates)
                    held.update(slices)
                    return eager(part, *args, **kwargs)
                finally:
                    held.update(lazies)
                    self._end(layer)

        return forward

    def _listed(self, layer: LayerExperts, expert: int, held: Held, original: Forward) -> Forward:
        """One of a list of experts: its parameters are real while it runs."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._lock, torch.no_grad():
                self._weights.memory.check_open()
                if self._call is not None:
                    self._call.took(expert, args, kwargs)
                slot = self._slot(layer, expert)
                try:
                    for number, (parameters, name, _) in enumerate(held):
                        parameters[name] = layer.slots.parameter(layer.first + expert, number, slot)
                    return original(*args, **kwargs)
                finally:
                    for parameters, name, lazy in held:
                        parameters[name] = lazy

        return forward

    def _owner(self, layer: LayerExperts, original: Forward) -> Forward:
        """Of the module that has a list of experts: one call of it is one event."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self._weights.memory.check_open()
                frozen = self._weights.clock.frozen
                recording = self._record is not None and not frozen
                self._call = ListCall(layer.about.module, args, kwargs) if recording else None
                if not frozen:
                    layer.cache.begin(())
                try:
                    result = original(*args, **kwargs)
                    if not frozen:
                        self._foresee(layer, [e - layer.first for e in layer.cache.wanted])
                    if self._record is not None and self._call is not None:
                        self._record(layer.number, self._call.ids(), None)
                    return result
                finally:
                    self._call = None
                    self._end(layer)

        return forward

    def _begin(self, layer: LayerExperts, ids: torch.Tensor, gates: torch.Tensor | None) -> None:
        """The event of a call: what its tokens ask for, in the order in which they name it."""
        if self._weights.clock.frozen:
            return
        chosen = ids.detach().cpu().numpy().astype(np.int64)
        asked = dict.fromkeys(int(e) for e in chosen.reshape(-1) if 0 <= e < layer.about.experts)
        layer.cache.begin(layer.objects(list(asked)))
        if self._record is not None:
            alike = gates is not None and gates.shape == ids.shape
            self._record(
                layer.number, chosen, gates.detach().float().cpu().numpy() if alike and gates is not None else None
            )
        self._foresee(layer, list(asked))

    def _foresee(self, layer: LayerExperts, asked: list[int]) -> None:
        """Begin to read what the next layer will probably ask for."""
        foresee(self._followers, self.layers, layer, asked, self.reading.ahead)

    def _slot(self, layer: LayerExperts, expert: int) -> int:
        wanted = layer.first + expert
        if self._weights.clock.frozen:
            return layer.cache.slot_of.get(wanted, wanted % layer.cache.slots)
        return layer.cache.need(wanted)

    def _end(self, layer: LayerExperts) -> None:
        """The event is over. Bytes that were read are the module's; what was overwritten is read again."""
        layer.cache.end()
        if self.first is None and self.stats.events and layer.number == len(self.layers) - 1:
            self.first = replace(self.stats)
        if self._noted is not None:
            self._noted.append((layer.number, replace(self.stats)))
        read, self._told_nbytes = self.stats.read_nbytes - self._told_nbytes, self.stats.read_nbytes
        with self._weights.using:
            self._weights.looked_up_nbytes += read
        if layer.slots.written():
            layer.cache.clear()
            raise refuse_write(f"{layer.about.module}.{layer.about.parameters[0]}")


def _check(reading: ExpertCaching) -> None:
    """Raises InputError for numbers that no cache can have, and for a layer that is named twice."""
    if not reading.layers or reading.slots < 1:
        raise InputError(f"{len(reading.layers)} layers of experts in {reading.slots} slots: give 1 or more of both")
    if reading.ahead < 0 or (reading.decay is not None and not 0 < reading.decay <= 1):
        raise InputError(
            f"experts are cached with a decay of {reading.decay} and {reading.ahead} read ahead: give a decay above 0, "
            "up to 1, and 0 or more ahead"
        )
    if reading.memory < 0 or (reading.memory and (reading.shared or not all(x.fused for x in reading.layers))):
        raise InputError(
            f"experts are cached by what followed in {reading.memory} passes: give 0 or more, and 0 for layers that "
            "share slots and for lists of experts"
        )
    names = [layer.module for layer in reading.layers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the experts of '{twice}' are cached twice; name each layer once")
