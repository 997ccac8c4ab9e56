"""A training step as a graph to plan: forward, backward and updates in one."""

from __future__ import annotations

from .lower import lower_joint
from .lowered import TURN, OptimizerCalls, StateTensor, StepLowered, UpdateCall
from .placed import ALL, KEPT, STATES, Scope, TrainingLowered, live_nbytes, placed
from .updates import UPDATE, with_updates

__all__ = [
    "ALL",
    "KEPT",
    "STATES",
    "TURN",
    "UPDATE",
    "OptimizerCalls",
    "Scope",
    "StateTensor",
    "StepLowered",
    "TrainingLowered",
    "UpdateCall",
    "live_nbytes",
    "lower_joint",
    "placed",
    "with_updates",
]
