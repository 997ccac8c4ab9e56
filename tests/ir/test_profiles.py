from __future__ import annotations

import math
import unicodedata
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstow.ir.errors import InputError
from tensorstow.ir.machine import Link, Machine, Rate, Tier, TierKind, Unit
from tensorstow.ir.profiles import (
    format_size,
    load_machine,
    machine_names,
    parse_size,
    read_machine,
    write_machine,
)

PUBLISHED = [name for name in machine_names() if name != "host"]


def test_the_promised_machines_are_there() -> None:
    wanted = {"rtx4090", "a100-80gb", "h100", "h200", "mi325x", "jetson-orin", "npu-2mib", "sn40l", "host"}
    assert wanted <= set(machine_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_profile(name: str, tmp_path: Path) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert machine.fingerprint is None
    for entry in (*machine.tiers, *machine.links, *machine.units):
        assert entry.source, f"{name}: a figure without a source"
    # Every tier is reached from every other one, if over a third.
    reached, found = {machine.tiers[0].name}, True
    while found:
        found = {link.target for link in machine.links if link.origin in reached} - reached
        reached |= found
    assert reached == set(machine.tier)
    write_machine(machine, tmp_path / "copy.toml")
    assert read_machine(tmp_path / "copy.toml") == machine


names = st.text(min_size=1, max_size=8).filter(lambda s: bool(s.strip()))
positive = st.floats(min_value=1e-300, max_value=1e300)
sizes = st.integers(min_value=1, max_value=1 << 50)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    tiers = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    pairs = [(a, b) for a in tiers for b in tiers if a != b]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=5)) if pairs else []
    classes = draw(st.lists(st.tuples(names, names), unique=True, max_size=3))
    rates = tuple(Rate(c, d, draw(positive), draw(st.none() | positive)) for c, d in classes)
    flops = tuple((d, draw(positive)) for d in draw(st.lists(names, min_size=1, max_size=3, unique=True)))
    return Machine(
        name=draw(st.text()),
        tiers=tuple(Tier(t, draw(st.sampled_from(TierKind)), draw(sizes), source=draw(st.text())) for t in tiers),
        links=tuple(
            Link(a, b, draw(positive), draw(positive), draw(sizes), draw(st.none() | names)) for a, b in chosen
        ),
        units=(Unit("u", tiers[0], flops, draw(positive), draw(positive), rates, draw(st.integers(0, 512))),),
        fingerprint=draw(st.none() | st.text()),
        measured=draw(st.text()),
    )


def unprintable(value: object) -> bool:
    """Whether a text anywhere in it holds what commands a terminal."""
    if isinstance(value, str):
        return any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in value)
    if isinstance(value, tuple):
        return any(map(unprintable, value))
    return is_dataclass(value) and any(unprintable(getattr(value, f.name)) for f in fields(value))


@given(machine=machines())
def test_round_trip_is_exact(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("profile") / "machine.toml"
    try:
        write_machine(machine, path)
    except InputError as error:
        # A link is known by its printed name; unusual tier names can make two of them alike.
        alike = len({link.name for link in machine.links}) < len(machine.links)
        assert alike or (unprintable(machine) and "control character" in str(error))
        return
    assert read_machine(path) == machine
    first = path.read_bytes()
    write_machine(read_machine(path), path)
    assert path.read_bytes() == first


GOOD = """
name = "box"
[[tiers]]
name = "dram"
kind = "dram"
capacity_nbytes = "4GiB"
[[tiers]]
name = "ssd"
kind = "ssd"
capacity_nbytes = 1000000000
[[links]]
origin = "ssd"
target = "dram"
bytes_per_s = 1e9
[[units]]
name = "cpu"
tier = "dram"
flops_per_s = { float32 = 1e11 }
bytes_per_s = 1e10
rates = [{ cost_class = "matmul", dtype = "float32", flops_per_s = 1e11 }]
"""


def test_defaults_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(GOOD)
    machine = read_machine(path)
    assert machine.tier["dram"].capacity_nbytes == 4 << 30
    assert machine.tier["dram"].alignment == 64
    assert machine.units[0].rate["matmul", "float32"].bytes_per_s is None
    assert load_machine(str(path)) == machine


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("bytes_per_s = 1e9", "bytes_per_s = nan", ["ssd->dram", "bytes_per_s", "nan"]),
        ("bytes_per_s = 1e9", "bytes_per_s = inf", ["bytes_per_s", "inf"]),
        ("bytes_per_s = 1e9", "bytes_per_s = 0", ["bytes_per_s", "greater than zero"]),
        ("bytes_per_s = 1e9", "bytes_per_s = -1.0", ["bytes_per_s", "-1.0"]),
        ("bytes_per_s = 1e9", 'bytes_per_s = "fast"', ["bytes_per_s", "number"]),
        ("bytes_per_s = 1e9", "bytes_per_s = true", ["bytes_per_s", "number"]),
        ("bytes_per_s = 1e9", "bytes_per_s = 1e9\nlatency_s = -1", ["latency_s", "-1"]),
        ("bytes_per_s = 1e9", "bytes_per_s = 1e9\nlatncy_s = 1", ["latncy_s"]),
        ("bytes_per_s = 1e9", "", ["bytes_per_s", "misses"]),
        ('target = "dram"', 'target = "hbm"', ["ssd->hbm", "target", "dram, ssd"]),
        ('target = "dram"', 'target = "ssd"', ["same tier"]),
        ('name = "ssd"', 'name = "dram"', ["tiers", "'dram' 2 times"]),
        ('kind = "ssd"', 'kind = "tape"', ["tape", "'hbm'"]),
        ('"4GiB"', '"4 bananas"', ["capacity_nbytes", "4 bananas"]),
        ('"4GiB"', "-5", ["capacity_nbytes", "-5"]),
        ('"4GiB"', "1.5", ["capacity_nbytes", "int"]),
        ("{ float32 = 1e11 }", "{ }", ["flops_per_s", "empty"]),
        ("{ float32 = 1e11 }", "{ float32 = nan }", ["flops_per_s.float32", "nan"]),
        (", flops_per_s = 1e11 }]", " }]", ["matmul/float32", "neither"]),
        ('tier = "dram"', 'tier = "l2"', ["unit 'cpu'", "l2"]),
        ('name = "box"', 'name = "box', ["not TOML"]),
        ('name = "box"', 'name = "box"\ntiers = 3', ["TOML"]),
        ("capacity_nbytes = 1000000000", "capacity_nbytes = 10\nreserve_nbytes = 10", ["reserve_nbytes", "10"]),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, says: list[str], tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_machine(path)
    for part in (str(path), *says):
        assert part in str(error.value)


def test_bad_numbers_are_not_written(tmp_path: Path) -> None:
    machine = load_machine("h100")
    broken = replace(machine, links=(replace(machine.links[0], bytes_per_s=math.nan),))
    with pytest.raises(InputError, match="bytes_per_s = nan"):
        write_machine(broken, tmp_path / "x.toml")
    assert not list(tmp_path.iterdir())


def test_unknown_unmeasured_and_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"no machine is called 'rtx5090'.*rtx4090"):
        load_machine("rtx5090")
    with pytest.raises(InputError, match="tensorstow machine calibrate"):
        load_machine("host")
    with pytest.raises(InputError, match=r"gone\.toml' cannot be read"):
        load_machine(str(tmp_path / "gone.toml"))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4096", 4096),
        ("64MiB", 64 << 20),
        ("24GB", 24 * 10**9),
        ("1.5GiB", 3 << 29),
        (" 2 kib ", 2048),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "1.5", "-1MiB", "0", "1e9", "5 apples", "0.0001KiB", "nan", "\u0661MiB", "inf"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (432013312, "412.0 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes_as_text(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@given(st.integers(min_value=1, max_value=1 << 60))
def test_a_printed_size_is_near(nbytes: int) -> None:
    text = format_size(nbytes)
    assert abs(float(text.split()[0]) * _unit(text.split()[1]) - nbytes) <= 0.05 * nbytes


def _unit(name: str) -> int:
    return 1 if name.startswith("byte") else parse_size(f"1{name}")
