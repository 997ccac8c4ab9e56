"""How many tokens a Hugging Face module has positions for, where these are a table: it knows no others."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ...ir.errors import InputError

_STATED = ("max_position_embeddings", "max_target_positions")
"""By what configs call the number of positions; GPT-2 and its like map their own names to the first."""
_NAME = re.compile(r"(^|_)(pos|positions?|wpe)(_|$)")


def check_positions(module: nn.Module, read: int, encoded: int) -> None:
    """Raises InputError for a transformers module that has a table of positions with fewer than it is to read: `read`
    tokens in all, or `encoded` ones in an encoder that stands beside a decoder.

    Such a table is an nn.Embedding of as many rows as the config says that there are positions, after which it is
    called. Positions by angles (rotary), by distances or by formulas go on for ever.
    """
    config: Any = module.config
    two = bool(getattr(config, "is_encoder_decoder", False))
    for name, table in module.named_modules():
        if not isinstance(table, nn.Embedding) or not _NAME.search(name.rpartition(".")[2]):
            continue
        positions = _positions(config, table)
        inside = "encoder." in name and "decoder." not in name
        tokens = encoded if two and inside else read
        if positions is not None and tokens > positions:
            raise InputError(
                f"{type(module).__name__} has {positions} positions, in the table '{name}', and is to read {tokens} "
                f"tokens{' in its encoder' if two and inside else ''}; give a shorter length or context"
            )


def _positions(config: Any, table: nn.Embedding) -> int | None:
    """Positions that a table has; None where the config tells of no table of this size."""
    rows, unused = table.num_embeddings, getattr(table, "offset", 0)
    configs = [config, *(getattr(config, name, None) for name in ("text_config", "encoder", "decoder"))]
    stated = [getattr(c, key, None) for c in configs for key in _STATED]
    if not any(n is not None and rows in (n, n + unused) for n in stated):
        return None
    if table.padding_idx is not None:  # RoBERTa and its like count on from the padding's own row
        unused = max(unused, table.padding_idx + 1)
    return rows - unused
