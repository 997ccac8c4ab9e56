"""Times of torch operators on this machine, kept between processes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from ..ir.codec import digest
from ..ir.errors import InputError
from ..ir.paths import cache_dir, write_atomic
from ..ir.signature import Signature
from .calibrate import host_fingerprint

SCHEMA = "tensorstow-torch-rates/2"


@dataclass(frozen=True, slots=True)
class Known:
    """Nanoseconds of a call by signature; why others cannot be measured here; overheads by name."""

    times: dict[Signature, int] = field(default_factory=dict[Signature, int])
    skipped: dict[Signature, str] = field(default_factory=dict[Signature, str])


def cache_path(threads: int, *, warm: bool = False) -> Path:
    """The file for this machine, this torch and that many threads; another one where results take `warm` memory."""
    parts = (host_fingerprint(), torch.__version__, str(threads), *(("warm",) if warm else ()))
    return cache_dir() / f"torch-rates-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}.json"


def read_known(path: Path) -> Known:
    """What the file holds; nothing where it is absent, damaged or of another schema: it can be made again."""
    try:
        document = json.loads(path.read_bytes())
        body = document["body"]
        if document["schema"] != SCHEMA or document["digest"] != digest(body):
            return Known()
        return Known(_numbers(body["times"]), {str(k): str(v) for k, v in body["skipped"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Known()


def add_known(path: Path, times: Mapping[Signature, int], skipped: Mapping[Signature, str]) -> None:
    """Put these beside what the file holds by now. Raises InputError where it cannot be written."""
    known = read_known(path)
    body = {"times": {**known.times, **times}, "skipped": {**known.skipped, **skipped}}
    content = json.dumps({"schema": SCHEMA, "digest": digest(body), "body": body}, separators=(",", ":"))
    try:
        write_atomic(path, content.encode())
    except OSError as error:
        raise InputError(f"cannot keep the measured times in {path}: {error.strerror}; set TENSORSTOW_CACHE") from error


def _numbers(data: Any) -> dict[Signature, int]:
    found: dict[Signature, int] = {}
    for signature, ns in cast("dict[Any, Any]", data).items():
        if not isinstance(ns, int) or isinstance(ns, bool) or not 0 <= ns < math.inf:
            raise ValueError(f"a time of {ns!r}")
        found[str(signature)] = ns
    return found
