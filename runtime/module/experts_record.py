"""Which tokens a list of experts is called for: told by the rows that its experts are given.

The router of a module's own is not seen. But an expert is given rows of what its owner was given, as they are, so these
say whose they are. Rows that are equal are routed alike: each of them counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_flatten

from ...ir.errors import InputError


class ListCall:
    """One call of the owner of the list `name`, with these arguments."""

    def __init__(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._name = name
        rows = _rows((args, kwargs))
        self._tokens: dict[bytes, list[int]] = {}
        for number, row in enumerate(rows):
            self._tokens.setdefault(row, []).append(number)
        self._chosen: list[list[int]] = [[] for _ in rows]

    def took(self, expert: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """`expert` was called with these arguments. Raises InputError where its rows are none of the owner's."""
        for row in dict.fromkeys(_rows((args, kwargs))):
            if row not in self._tokens:
                raise InputError(
                    f"expert {expert} of the list '{self._name}' is given rows that its owner was not given, so whose "
                    "they are is not known: routing is recorded where experts are given tokens' rows as they are"
                )
            for token in self._tokens[row]:
                if expert not in self._chosen[token]:
                    self._chosen[token].append(expert)

    def ids(self) -> NDArray[np.int64]:
        """The experts of each token, int64 [tokens, the most of one], in the order of use; -1 fills up."""
        width = max((len(chosen) for chosen in self._chosen), default=0)
        found = np.full((len(self._chosen), width), -1, np.int64)
        for token, chosen in enumerate(self._chosen):
            found[token, : len(chosen)] = chosen
        return found


def _rows(values: Any) -> list[bytes]:
    """The bytes of each row of the first tensor of floating point among some arguments."""
    for value in tree_flatten(values)[0]:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            rows = value.detach().cpu().contiguous().reshape(-1, value.shape[-1])
            return [row.tobytes() for row in rows.view(torch.uint8).numpy()] if value.shape[-1] else []
    return []
