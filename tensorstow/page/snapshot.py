"""A plan as a memory snapshot of PyTorch's, which its viewer at pytorch.org/memory_viz shows as a timeline of blocks.

The format is that of `torch.cuda.memory._snapshot()`: `device_traces` holds a list of events for each device, in order
of time; here each tier of the plan is a device. Addresses are the plan's.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from ..ir.files import PlanFile
from ..ir.paths import write_atomic
from .boxes import Box, draw, plain_lines

Json = dict[str, Any]


def write_snapshot(file: PlanFile, path: Path) -> None:
    """Write one pass of the plan to `path`."""
    drawing = draw(file)
    snapshot = {
        "segments": [_segment(i, tier, drawing.file) for i, tier in enumerate(drawing.memory)],
        "device_traces": [_events(boxes) for boxes in drawing.memory.values()],
    }
    write_atomic(path, pickle.dumps(snapshot))


def _segment(device: int, tier: str, file: PlanFile) -> Json:
    """A tier as it is behind the last event, when all has been freed: one free block."""
    nbytes = file.plan.arena_nbytes.get(tier, 0)
    free: Json = {"address": 0, "size": nbytes, "requested_size": 0, "state": "inactive", "frames": []}
    return {
        "device": device,
        "address": 0,
        "total_size": nbytes,
        "allocated_size": 0,
        "active_size": 0,
        "requested_size": 0,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": [free] if nbytes else [],
    }


def _events(boxes: tuple[Box, ...]) -> list[Json]:
    """Allocations and frees in order of time; at one instant what goes makes room for what comes."""
    found: list[tuple[int, int, Json]] = []
    for box in boxes:
        lines = plain_lines(box.text)
        frames = [{"filename": lines[0], "name": "; ".join(lines[1:]), "line": 0}]
        common: Json = {"addr": box.low, "size": box.high - box.low, "stream": 0, "frames": frames}
        for order, action, at in (
            (2, "alloc", box.start_ns),
            (0, "free_requested", box.end_ns),
            (1, "free_completed", box.end_ns),
        ):
            found.append((at, order, {"action": action, "time_us": at // 1000, **common}))
    return [event for _, _, event in sorted(found, key=lambda e: e[:2])]
