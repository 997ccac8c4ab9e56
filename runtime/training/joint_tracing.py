"""How PyTorch is set while it traces a module, and what is given back afterwards."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch._dynamo import config as dynamo_config
from torch._dynamo import guards

from ..memory import trim_heap

_LOGGED = ("debug", "info", "warning", "warn", "error", "critical", "exception", "log")
_LOGGING = frozenset(f for name, f in vars(logging.Logger).items() if name.startswith(_LOGGED) and callable(f))
FORMS = 64
"""Forms of a call whose traces are kept: PyTorch keeps eight, and ends with an error at the ninth."""


@contextmanager
def tracing() -> Generator[None]:
    """Dynamo's settings, around every call: whether one is traced, guards alone know. What a module logs is no reason
    against a graph of it; it is not logged in planned steps."""
    config: Any = dynamo_config
    wanted = {
        "suppress_errors": False,
        "ignore_logging_functions": config.ignore_logging_functions | _LOGGING,
        "recompile_limit": FORMS,
    }
    before = {name: getattr(config, name) for name in wanted}
    try:
        for name, value in wanted.items():  # by hand, for `config.patch` takes three times as long
            setattr(config, name, value)
        with _guards_untimed():
            yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _guards_untimed() -> Generator[None]:
    """Without the time that PyTorch takes of its guards, for a line of its log: it writes 32 MiB before, to empty the
    caches, and that would be the peak of many a process that trains."""
    timed = getattr(guards, _TIMES_GUARDS, None)
    if timed is None:  # another version
        yield
        return
    setattr(guards, _TIMES_GUARDS, _no_time)
    try:
        yield
    finally:
        setattr(guards, _TIMES_GUARDS, timed)


_TIMES_GUARDS = "profile_guard_manager"


def _no_time(*_: object) -> float:
    return 0.0


@contextmanager
def quiet() -> Generator[None]:
    """Without the traceback that tracing prints for an error in the model before it raises it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def forget_tracing() -> None:
    """Give back what tracing and compiling took and nobody needs: cycles of objects, and the heap that they lay in."""
    gc.collect()
    trim_heap()
