"""The loss in what a module returns."""

from __future__ import annotations

from typing import Any, cast

import torch

from ...ir.errors import InputError


def picked(result: Any) -> Any:
    """`result` itself where it is a tensor, else its `loss` (by attribute or key), else the first of several."""
    if hasattr(result, "loss"):
        return result.loss
    if isinstance(result, dict) and "loss" in result:
        return cast("dict[str, Any]", result)["loss"]
    if isinstance(result, (tuple, list)):
        return cast("tuple[Any, ...]", result)[0]
    return result


def loss_of(result: Any) -> torch.Tensor:
    """What `picked` finds. Raises InputError where that is no tensor, or none of one element."""
    found = picked(result)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        what = f"a tensor of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(
            f"the module returns {what} where a training step needs its loss, one number; give `loss`, a function of "
            "what the module returns"
        )
    return found
