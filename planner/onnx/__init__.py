"""ONNX models as graphs of operators with kernels: load, lift weights, optimise, lower, split."""

from .load import model_source
from .lookup import apply_lookups, tables
from .lower import Lowered, lower_onnx
from .split import split
from .split_axis import SplitAxis, splittable
from .uncounted import uncounted

__all__ = [
    "Lowered",
    "SplitAxis",
    "apply_lookups",
    "lower_onnx",
    "model_source",
    "split",
    "splittable",
    "tables",
    "uncounted",
]
