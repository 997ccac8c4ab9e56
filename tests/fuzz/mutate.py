"""Deterministic mutations: of bytes, and of JSON documents. The same generator gives the same mutants."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**30, 0.5, -0.0, 1e308, "",
    "\0", "../../etc/passwd", "/etc/passwd", "\ud800", "x" * 5000, [], {}, [[]], [None], {"": None}, [1 << 62] * 3,
)  # fmt: skip
"""Values that a reader might not expect where it finds them."""


def mutated_bytes(rng: np.random.Generator, content: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """One to four changes: bits, bytes, spans removed, doubled, filled or taken from elsewhere, an end cut off."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not found:
            return bytes(rng.bytes(8))
        at = int(rng.integers(len(found)))
        span = int(min(len(found) - at, 2 ** rng.uniform(0, 8)))
        kind = int(rng.integers(8))
        if kind == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            found[at] = int(rng.choice(INTERESTING))
        elif kind == 2:
            del found[at : at + span]
        elif kind == 3:
            found[at:at] = found[at : at + span]
        elif kind == 4:
            found[at : at + span] = bytes([int(rng.choice(INTERESTING))]) * span
        elif kind == 5:
            found[at : at + span] = rng.bytes(span)
        elif kind == 6:
            source = others[int(rng.integers(len(others)))] if others else bytes(found)
            start = int(rng.integers(len(source)))
            found[at:at] = source[start : start + span]
        elif rng.random() < 0.3:
            del found[at:]
        else:
            width = int(rng.choice([1, 2, 4, 8]))
            value = (0, 1, (1 << (8 * width - 1)) - 1, (1 << (8 * width)) - 1)[int(rng.integers(4))]
            found[at : at + width] = value.to_bytes(width, "little")
    return bytes(found)


def mutated_json(rng: np.random.Generator, document: Any) -> Any:
    """A copy with one to three values replaced, removed, doubled or exchanged."""
    found = json.loads(json.dumps(document))
    for _ in range(int(rng.integers(1, 4))):
        _mutate_once(rng, found)
    return found


def _mutate_once(rng: np.random.Generator, document: Any) -> None:
    parent, key = _place(rng, document)
    kind = int(rng.integers(6))
    if kind < 3:
        parent[key] = HOSTILE[int(rng.integers(len(HOSTILE)))]
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        other, place = _place(rng, document)
        parent[key] = json.loads(json.dumps(other[place]))
    elif isinstance(parent, list):
        cast("list[Any]", parent).insert(0, json.loads(json.dumps(parent[key])))
    elif isinstance(parent[key], int) and not isinstance(parent[key], bool):
        parent[key] += int(rng.choice([-1, 1, 64, -4096, 1 << 20]))
    else:
        parent[f"{key}'"] = parent[key]


def _place(rng: np.random.Generator, document: Any) -> tuple[Any, Any]:
    """A container and a key of it, anywhere: deep ones as often as shallow ones."""
    here, found = document, list[tuple[Any, Any]]()
    while isinstance(here, (dict, list)) and here:
        keys = list(cast("dict[str, Any]", here)) if isinstance(here, dict) else range(len(cast("list[Any]", here)))
        key = keys[int(rng.integers(len(keys)))]
        found.append((here, key))
        here = cast("Any", here)[key]
    return found[int(rng.integers(len(found)))] if found else ([document], 0)
