"""What every replay does at an event: look the whole set up, then take in what is missing."""

from __future__ import annotations

from typing import Any

from ..jit import compiled


@compiled
def take_in(ids: Any, sizes: Any, resident: Any) -> Any:
    """Objects of the set `ids` that are resident, and the size of the others, which are so from now on."""
    hits, loaded = 0, 0
    for k in range(ids.shape[0]):
        o = ids[k]
        if o < 0:
            continue
        if resident[o]:
            hits += 1
        else:
            resident[o] = True
            loaded += sizes[o]
    return hits, loaded
