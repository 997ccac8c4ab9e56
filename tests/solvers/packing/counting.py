"""How often the packer calls a function of its own."""

from __future__ import annotations

import sys
from typing import Any

import pytest

PACKAGE = "tensorstow.solvers.packing"


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Replace a function in every module of the package that has it; the list grows by a module's name at each call."""
    calls: list[str] = []
    for path, module in list(sys.modules.items()):
        found: Any = getattr(module, name, None)
        if (path == PACKAGE or path.startswith(f"{PACKAGE}.")) and callable(found):
            monkeypatch.setattr(module, name, _counting(found, path, calls))
    return calls


def _counting(function: Any, module: str, calls: list[str]) -> Any:
    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(module)
        return function(*args, **kwargs)

    return counting
