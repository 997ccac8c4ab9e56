"""Machine profiles: TOML files, one a machine. Those of published figures lie in `machines/`, the measured one in the
cache.

A file has the fields of `Machine` at its top and a `[[tiers]]`, `[[links]]` or `[[units]]` table for each of their
entries; `flops_per_s` of a unit is a table by dtype. Fields with a default may be left out. Sizes (`*_nbytes`) may be
written '24GiB'.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from .codec import check_text, from_json, to_json
from .errors import InputError
from .machine import Link, Machine, Rate, Tier, Unit
from .paths import cache_dir, write_atomic
from .sizes import format_size, parse_size

# The standard library has it from Python 3.11 on; tomli is the same parser, by the same author, before.
_toml_parser = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

__all__ = [
    "format_size",
    "host_profile_path",
    "load_machine",
    "machine_names",
    "parse_size",
    "read_machine",
    "write_machine",
]

_BUILT_IN = Path(__file__).parent / "machines"
_SECTIONS: dict[str, type] = {"tiers": Tier, "links": Link, "units": Unit}


def machine_names() -> tuple[str, ...]:
    """The names that `load_machine` knows: the published profiles, sorted, and 'host', the machine it runs on."""
    return (*sorted(p.stem for p in _BUILT_IN.glob("*.toml")), "host")


def host_profile_path() -> Path:
    """Where `tensorstow machine calibrate` keeps what it measured of this machine."""
    return cache_dir() / "host.toml"


def load_machine(name_or_path: str) -> Machine:
    """The machine of a name of `machine_names()`, or of a profile file, which is told by its ending '.toml'.

    Raises InputError for an unknown name, for a file that cannot be used, and for 'host' where nothing was measured
    yet.
    """
    if name_or_path.endswith(".toml"):
        return read_machine(Path(name_or_path))
    if name_or_path not in machine_names():
        raise InputError(
            f"no machine is called '{name_or_path}'; there are {', '.join(machine_names())}, or give a profile, "
            "FILE.toml"
        )
    if name_or_path == "host":
        path = host_profile_path()
        if not path.exists():
            raise InputError("this machine was not measured yet; run `tensorstow machine calibrate`")
        return read_machine(path)
    return read_machine(_BUILT_IN / f"{name_or_path}.toml")


def read_machine(path: Path) -> Machine:
    """The machine that a profile describes. Whatever is wrong with it is one InputError: file, key, value, remedy."""
    try:
        data: dict[str, Any] = _toml_parser.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"machine profile '{path}' cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, _toml_parser.TOMLDecodeError) as error:
        raise InputError(f"machine profile '{path}' is not TOML: {error}") from error
    machine = from_json(Machine, _complete(data, str(path)), str(path))
    _check(machine, str(path))
    return machine


def write_machine(machine: Machine, path: Path) -> None:
    """Write the profile of `machine`, whole or not at all. `read_machine` gives back an equal one."""
    _check(machine, f"machine '{machine.name}'")
    top = {f.name: getattr(machine, f.name) for f in fields(Machine) if f.name not in _SECTIONS}
    lines = _entries(Machine, top)
    for section, kind in _SECTIONS.items():
        for entry in cast("tuple[Tier | Link | Unit, ...]", getattr(machine, section)):
            values = {f.name: getattr(entry, f.name) for f in fields(kind)}
            if isinstance(entry, Unit):
                values["flops_per_s"] = dict(entry.flops_per_s)
            lines += ["", f"[[{section}]]", *_entries(kind, values)]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _complete(data: dict[str, Any], where: str) -> dict[str, Any]:
    """`data` with the fields that were left out, sizes as numbers and tables as the pairs that `Unit` holds."""
    whole = _defaults(Machine, data)
    for section, kind in _SECTIONS.items():
        entries = whole.get(section, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in cast("list[Any]", entries)):
            raise InputError(f"{where}: '{section}' must be [[{section}]] tables, one an entry")
        rows = [_defaults(kind, e) for e in cast("list[dict[str, Any]]", entries)]
        for i, row in enumerate(rows):
            _read_sizes(row, f"{where}: {section}[{i}]")
            if isinstance(row.get("flops_per_s"), dict):
                row["flops_per_s"] = [list(pair) for pair in row["flops_per_s"].items()]
            if isinstance(row.get("rates"), list):
                row["rates"] = [_defaults(Rate, r) if isinstance(r, dict) else r for r in row["rates"]]
        whole[section] = rows
    return whole


def _defaults(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    known = {f.name: to_json(f.default) for f in fields(cls) if f.default is not MISSING}
    return known | given


def _read_sizes(row: dict[str, Any], where: str) -> None:
    for key, value in row.items():
        if key.endswith("_nbytes") and isinstance(value, str):
            try:
                row[key] = parse_size(value)
            except InputError as error:
                raise InputError(f"{where}.{key}: {error}") from error


def _entries(cls: type, values: dict[str, Any]) -> list[str]:
    """'key = value' of the fields that differ from their default."""
    defaults = {f.name: f.default for f in fields(cls)}
    return [f"{key} = {_toml(value)}" for key, value in values.items() if value != defaults[key]]


def _toml(value: object) -> str:
    if isinstance(value, Rate):
        pairs = {f.name: getattr(value, f.name) for f in fields(Rate)}
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in pairs.items() if v is not None) + " }"
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        return "{ " + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in entries.items()) + " }"
    if isinstance(value, tuple):
        rows = "".join(f"    {_toml(v)},\n" for v in cast("tuple[object, ...]", value))
        return f"[\n{rows}]" if rows else "[]"
    plain = to_json(value)
    if isinstance(plain, str):
        check_text(plain, "a machine profile")
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
    # repr of a finite float is TOML and reads back as the same float.
    return repr(plain)


def _check(machine: Machine, where: str) -> None:
    if not machine.tiers or not machine.units:
        raise InputError(f"{where}: a machine needs at least one [[tiers]] and one [[units]] table")
    _check_unique((t.name for t in machine.tiers), where, "tiers")
    _check_unique((u.name for u in machine.units), where, "units")
    _check_unique((link.name for link in machine.links), where, "links")
    for tier in machine.tiers:
        _check_tier(tier, f"{where}: tier '{tier.name}'")
    for link in machine.links:
        _check_link(link, machine, f"{where}: link '{link.name}'")
    for unit in machine.units:
        _check_unit(unit, machine, f"{where}: unit '{unit.name}'")


def _check_unique(names: Iterable[str], where: str, section: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{where}: {section} has '{name}' {count} times; keep one")
        if not name.strip():
            raise InputError(f"{where}: an entry of {section} has an empty name; give it one")


def _check_tier(tier: Tier, where: str) -> None:
    _check_number(tier.capacity_nbytes, where, "capacity_nbytes")
    _check_number(tier.alignment, where, "alignment")
    _check_number(tier.reserve_nbytes, where, "reserve_nbytes", zero=True)
    if tier.reserve_nbytes >= tier.capacity_nbytes:
        raise InputError(
            f"{where}: reserve_nbytes = {tier.reserve_nbytes} leaves nothing of capacity_nbytes = "
            f"{tier.capacity_nbytes}; lower it"
        )


def _check_link(link: Link, machine: Machine, where: str) -> None:
    for key, name in (("origin", link.origin), ("target", link.target)):
        _check_known(name, machine, where, key)
    if link.origin == link.target:
        raise InputError(f"{where}: origin and target are the same tier; a link joins two")
    _check_number(link.bytes_per_s, where, "bytes_per_s")
    _check_number(link.latency_s, where, "latency_s", zero=True)
    _check_number(link.chunk_nbytes, where, "chunk_nbytes")
    _check_number(link.contention, where, "contention", zero=True)


def _check_unit(unit: Unit, machine: Machine, where: str) -> None:
    _check_known(unit.tier, machine, where, "tier")
    _check_number(unit.bytes_per_s, where, "bytes_per_s")
    _check_number(unit.launch_s, where, "launch_s", zero=True)
    _check_number(unit.threads, where, "threads", zero=True)
    if not unit.flops_per_s:
        raise InputError(f"{where}: flops_per_s is empty; give at least float32")
    _check_unique((dtype for dtype, _ in unit.flops_per_s), where, "flops_per_s")
    for dtype, rate in unit.flops_per_s:
        _check_number(rate, where, f"flops_per_s.{dtype}")
    _check_unique((f"{r.cost_class}/{r.dtype}" for r in unit.rates), where, "rates")
    for rate in unit.rates:
        key = f"rates '{rate.cost_class}/{rate.dtype}'"
        if rate.flops_per_s is None and rate.bytes_per_s is None:
            raise InputError(f"{where}: {key} has neither flops_per_s nor bytes_per_s; give one or remove it")
        for name, value in (("flops_per_s", rate.flops_per_s), ("bytes_per_s", rate.bytes_per_s)):
            if value is not None:
                _check_number(value, where, f"{key}.{name}")


def _check_known(tier: str, machine: Machine, where: str, key: str) -> None:
    if tier not in machine.tier:
        raise InputError(f"{where}: {key} = '{tier}' is no tier of this machine; its tiers: {', '.join(machine.tier)}")


def _check_number(value: float, where: str, key: str, *, zero: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        wanted = "zero or more" if zero else "greater than zero"
        raise InputError(f"{where}: {key} = {value} is not usable; give a finite number {wanted}")
