"""The loss in what a module returns."""

from __future__ import annotations

from typing import Any, cast

import torch

from ...ir.errors import InputError


def loss_of(result: Any) -> torch.Tensor:
    """`result` itself where it is a tensor, else its `loss` (by attribute or key), else the first of several.

    Raises InputError where there is no tensor, or one that is no scalar.
    """
    found = result
    if hasattr(result, "loss"):
        found = result.loss
    elif isinstance(result, dict) and "loss" in result:
        found = cast("dict[str, Any]", result)["loss"]
    elif isinstance(result, (tuple, list)):
        found = cast("tuple[Any, ...]", result)[0]
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        what = f"a tensor of shape {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(
            f"the module returns {what} where a training step needs its loss, one number; give `loss`, a function of "
            "what the module returns"
        )
    return found
