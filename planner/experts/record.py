"""A trace as it grows while a model runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import InputError
from ...solvers.caching.problem import NONE
from .trace import Trace


class Recorder:
    """Collects routing, layer after layer, in calls of one or many tokens.

    `begin` starts a prompt; `add` takes what a layer's router chose for the tokens of one call. Layers are numbered in
    the order in which they run; all must see the same tokens.
    """

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self.layers, self.experts, self.top_k = layers, experts, top_k
        self._prompts: list[str] = []
        self._ids: list[list[list[NDArray[np.int32]]]] = []
        self._gates: list[list[list[NDArray[np.float32]]]] = []

    def begin(self, kind: str = "") -> None:
        """Start a prompt of class `kind`."""
        self._prompts.append(kind)
        self._ids.append([[] for _ in range(self.layers)])
        self._gates.append([[] for _ in range(self.layers)])

    def add(self, layer: int, ids: NDArray[np.integer], gates: NDArray[np.floating] | None = None) -> None:
        """What `layer` chose: `ids` [tokens, k] with k <= top_k, and the gates, of the same shape.

        Each set is put in the order of its gates, the greatest first. Raises InputError for shapes or layers that do
        not fit, and where some calls have gates and others none.
        """
        if not 0 <= layer < self.layers:
            raise InputError(f"layer {layer} is recorded, and the recorder has {self.layers}")
        if ids.ndim != 2 or ids.shape[1] > self.top_k or (gates is not None and gates.shape != ids.shape):
            of = "none" if gates is None else str(gates.shape)
            raise InputError(
                f"layer {layer}: ids {ids.shape} and gates {of}; both must be [tokens, {self.top_k} at most]"
            )
        if not self._prompts:
            self.begin()
        kept = np.full((len(ids), self.top_k), NONE, dtype=np.int32)
        weights = np.zeros((len(ids), self.top_k), dtype=np.float32)
        order = np.argsort(-gates, axis=1, kind="stable") if gates is not None else np.arange(ids.shape[1])[None, :]
        kept[:, : ids.shape[1]] = np.take_along_axis(ids, np.broadcast_to(order, ids.shape), axis=1)
        self._ids[-1][layer].append(kept)
        if gates is not None:
            weights[:, : ids.shape[1]] = np.take_along_axis(gates, order, axis=1)
            self._gates[-1][layer].append(weights)

    def trace(self) -> Trace:
        """All that was recorded. Prompts of which nothing was recorded are left out.

        Raises InputError where layers saw different numbers of tokens, or nothing was recorded.
        """
        kinds: list[str] = []
        ids: list[NDArray[np.int32]] = []
        gates: list[NDArray[np.float32]] = []
        for kind, sets, weights in zip(self._prompts, self._ids, self._gates, strict=True):
            counts = [sum(map(len, parts)) for parts in sets]
            if len(set(counts)) > 1:
                raise InputError(f"prompt {len(kinds)}: layers saw {sorted(set(counts))} tokens; all must see the same")
            if not counts or not counts[0]:
                continue
            kinds.append(kind)
            ids.append(np.stack([np.concatenate(parts) for parts in sets], axis=1))
            if all(sum(map(len, parts)) == counts[0] for parts in weights):
                gates.append(np.stack([np.concatenate(parts) for parts in weights], axis=1))
        if not ids:
            raise InputError("nothing was recorded: no layer with experts ran")
        if gates and len(gates) != len(ids):
            raise InputError(f"{len(gates)} of {len(ids)} prompts have gates; record them for all or none")
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int64)
        return Trace(np.concatenate(ids), self.experts, offsets, tuple(kinds), np.concatenate(gates) if gates else None)
