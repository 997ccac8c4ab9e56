"""PyTorch modules as graphs: the operators of a pass, and its parts between one reading of weights and the next."""

from ..lookups import store_link
from .lower import lower_module
from .lowered import ModuleCall, OpLowered, Weight
from .parts import ModuleLowered, live_nbytes, parts
from .placed import placed_weights
from .tables import choose_lookups, tables

__all__ = [
    "ModuleCall",
    "ModuleLowered",
    "OpLowered",
    "Weight",
    "choose_lookups",
    "live_nbytes",
    "lower_module",
    "parts",
    "placed_weights",
    "store_link",
    "tables",
]
