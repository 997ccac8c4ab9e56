"""Labels for a training step of a Hugging Face module."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ...ir.errors import InputError

_ONE_A_ROW = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification", "ForMultipleChoice")
"""Ends of the names of classes whose labels are one a row; the others have one a token."""


def with_labels(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` of a pass with labels of zeros, so that the module returns a loss; no cache is asked for.

    Raises InputError for a module that takes no labels.
    """
    takes = inspect.signature(module.forward).parameters
    name = type(module).__name__
    tokens = next((inputs[n] for n in ("decoder_input_ids", "input_ids") if n in inputs), None)
    first = next(v for v in inputs.values() if isinstance(v, torch.Tensor))
    found = dict(inputs)
    if "labels" in takes:
        if name.endswith(_ONE_A_ROW) or tokens is None:
            regression = getattr(module.config, "num_labels", 2) == 1
            found["labels"] = torch.zeros(first.shape[0], dtype=torch.float32 if regression else torch.int64)
        else:
            found["labels"] = torch.zeros(tokens.shape, dtype=torch.int64)
    elif {"start_positions", "end_positions"} <= set(takes):
        found |= {n: torch.zeros(first.shape[0], dtype=torch.int64) for n in ("start_positions", "end_positions")}
    else:
        raise InputError(
            f"{name} takes no labels, so it returns no loss to train with; name an architecture with a head in its "
            "config.json, or give a callable that returns (module, example_inputs, loss)"
        )
    if "use_cache" in takes:
        found["use_cache"] = False
    return found
