"""How PyTorch is set while it traces a module, and what is given back afterwards."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator
from contextlib import contextmanager

from torch._dynamo import config as dynamo_config
from torch._dynamo import guards

from ..memory import trim_heap

_LOGGED = ("debug", "info", "warning", "warn", "error", "critical", "exception", "log")


@contextmanager
def tracing() -> Generator[None]:
    """Dynamo's settings. What a module logs is no reason against a graph of it; it is not logged in planned steps."""
    methods = {f for name, f in vars(logging.Logger).items() if name.startswith(_LOGGED) and callable(f)}
    ignored = dynamo_config.ignore_logging_functions | methods
    with dynamo_config.patch(suppress_errors=False, ignore_logging_functions=ignored), _guards_untimed():
        yield


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
