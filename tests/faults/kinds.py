"""The kinds of random cases."""

from __future__ import annotations

EXECUTED = ("onnx", "module", "training")
"""Those that are executed."""
MARKS = {"planned": "", "onnx": "x", "module": "m", "training": "t"}
"""What follows the seed of a case of each kind in its name."""
STREAMS = {kind: number for number, kind in enumerate(MARKS)}
"""What a case's numbers are drawn by, beside its seed."""
