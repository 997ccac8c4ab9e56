"""Which parameters and buffers of a module a plan places; the others stay ordinary tensors."""

from __future__ import annotations

from .lowered import OpLowered, Weight

SMALL_NBYTES = 64 << 10
"""Parameters of up to this size may stay ordinary tensors: a read of its own costs more than the bytes do."""
SMALL_SHARE = 64
"""Of all bytes of parameters, at most one part in so many stays for being small."""
LARGE_BUFFER_NBYTES = 1 << 20
"""Buffers above this size that no operator writes are placed as parameters are."""


def placed_weights(lowered: OpLowered) -> dict[str, Weight]:
    """What is placed, by storage, in the module's order: parameters except the smallest ones, and large buffers.

    Parameters are left ascending by size, while each has up to SMALL_NBYTES and together they have at most a
    SMALL_SHARE-th of all. What a pass writes stays, and so does what is empty or not dense.
    """
    weights = lowered.weights.values()
    budget = sum(w.nbytes for w in weights if not w.is_buffer) // SMALL_SHARE
    small: set[str] = set()
    for weight in sorted((w for w in weights if not w.is_buffer), key=lambda w: w.nbytes):
        budget -= weight.nbytes
        if weight.nbytes > SMALL_NBYTES or budget < 0:
            break
        small.add(weight.storage)
    return {w.storage: w for w in weights if w.storage not in small and _placeable(w)}


def _placeable(weight: Weight) -> bool:
    if weight.written or not weight.dense or weight.nbytes == 0:
        return False
    return not weight.is_buffer or weight.nbytes > LARGE_BUFFER_NBYTES
