"""Dataclasses to JSON and back, by their type hints; strict in what it reads, sorted in what it writes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .collecting import without_collecting
from .errors import InputError

T = TypeVar("T")


_PLAIN = frozenset({str, int, bool, NoneType})
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_INT64 = range(-(1 << 63), 1 << 63)


@cache
def _field_names(cls: type) -> tuple[str, ...] | None:
    """Names of the fields of a dataclass, None for other types; a graph has hundreds of thousands of few types."""
    return tuple(f.name for f in fields(cls)) if is_dataclass(cls) else None


def to_json(value: object) -> Any:
    """`value` as lists, dicts, strings and numbers. Bytes become base64; NaN and infinity are refused."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    names = _field_names(kind)
    if names is not None:
        entries = ((name, getattr(value, name)) for name in names)
        return {name: v if type(v) in _PLAIN else to_json(v) for name, v in entries}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (tuple, list)):
        return [v if type(v) in _PLAIN else to_json(v) for v in cast("tuple[object, ...]", value)]
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in cast("dict[object, object]", value).items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"cannot write the number {value}: only finite numbers have a place in a file")
    return value


@without_collecting()
def dumps(value: object) -> bytes:
    """Canonical JSON: keys sorted, no spaces, UTF-8. Equal values give equal bytes."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal.

    Remembered with a value that cannot change: a frozen dataclass of other fields than dicts.
    """
    lasting = _lasting(type(value)) and hasattr(value, "__dict__")
    if lasting and "_digest" in vars(value):
        return cast("str", vars(value)["_digest"])
    found = hashlib.sha256(dumps(value)).hexdigest()
    if lasting:
        vars(value)["_digest"] = found  # as functools.cached_property does
    return found


@cache
def _lasting(cls: type) -> bool:
    if not is_dataclass(cls) or not cast("Any", cls).__dataclass_params__.frozen:
        return False
    return not any(get_origin(_hints(cls)[f.name]) is dict for f in fields(cls))


def loads(content: bytes, where: str) -> Any:
    """JSON from bytes; an InputError that names `where` when it is none. Duplicate keys and NaN are refused."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise InputError(f"{where}: a key occurs twice in one object; the file is damaged")
        return found

    def no_constant(name: str) -> Any:
        raise InputError(f"{where}: {name[:40]} is not a number that a file may hold")

    def finite(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else no_constant(text)  # 1e999

    try:
        return json.loads(content, object_pairs_hook=no_duplicates, parse_constant=no_constant, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a JSON file ({error})") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def from_json(cls: type[T], data: Any, where: str) -> T:
    """An instance of dataclass `cls` from `data`; unknown, missing and ill-typed entries are InputErrors."""
    return cast("T", _read(cls, data, where))


def _read(hint: Any, data: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        kinds = [a for a in get_args(hint) if a is not NoneType]
        return None if data is None and len(kinds) < len(get_args(hint)) else _read(kinds[0], data, where)
    if origin is tuple:
        return _read_tuple(get_args(hint), data, where)
    if origin is dict:
        _, value_hint = get_args(hint)
        entries = cast("dict[str, Any]", _expect(dict, data, where))
        return {_expect(str, k, where): _read(value_hint, v, f"{where}.{k}") for k, v in entries.items()}
    if is_dataclass(hint):
        return _read_dataclass(cast("type", hint), data, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(data)
        except ValueError as error:
            raise InputError(f"{where}: {data!r} is none of {', '.join(repr(m.value) for m in hint)}") from error
    if hint is bytes:
        try:
            return base64.b64decode(_expect(str, data, where), validate=True)
        except binascii.Error as error:
            raise InputError(f"{where}: not base64 ({error})") from error
    if hint is float:
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            raise InputError(f"{where}: expected a number, found {type(data).__name__}")
        try:
            return float(data)
        except OverflowError as error:
            raise InputError(f"{where}: {str(data)[:40]} is not a number that a file may hold") from error
    return _expect(hint, data, where)


def _expect(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise InputError(f"{where}: expected {kind.__name__}, found {type(data).__name__}")
    if kind is str:
        check_text(data, where)
    if kind is int and data not in _INT64:
        raise InputError(f"{where}: {str(data)[:40]} does not fit 64 bits; no file of ours has such a number")
    return data


def check_text(text: str, where: str) -> None:
    """Raises InputError for a text that no file of ours may hold: it could command the terminal that shows it."""
    if text.isprintable():
        return
    if _CONTROL.search(text):
        raise InputError(f"{where}: {text[:40]!r} holds a control character; no text of ours does")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a letter, and nothing could print it
        raise InputError(f"{where}: {text[:40]!r} is no text ({error.reason})") from error


def _read_tuple(hints: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    items = cast("list[Any]", _expect(list, data, where))
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(_read(hints[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if len(items) != len(hints):
        raise InputError(f"{where}: expected {len(hints)} entries, found {len(items)}")
    return tuple(_read(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, items, strict=True)))


def _read_dataclass(cls: type, data: Any, where: str) -> Any:
    entries = cast("dict[str, Any]", _expect(dict, data, where))
    hints = _hints(cls)
    names = {f.name for f in fields(cls)}
    # A field with a default may have come later than the file: what was written before it means the default.
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    missing, extra = sorted(needed - set(entries)), sorted(set(entries) - names)
    if missing or extra:
        raise InputError(f"{where}: {cls.__name__} misses {missing} and has unknown {extra}")
    return cls(**{name: _read(hints[name], value, f"{where}.{name}") for name, value in entries.items()})
