"""`tensorstow machine`: profiles listed, shown, and measured."""

from __future__ import annotations

from pathlib import Path

import pytest

import tensorstow as ts
from tests.conftest import Cli


def test_machines(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = cli("machine", "list")
    assert listed.status == 0
    for name in ("rtx4090", "a100-80gb", "h100", "h200", "mi325x", "jetson-orin", "npu-2mib", "sn40l", "host"):
        assert name in listed.out
        shown = cli("machine", "show", name)
        assert shown.status == 0
        assert name in shown.out
    from tensorstow.runtime import calibrate
    from tests.conftest import host_machine

    measured = host_machine().with_capacity({"dram": 3 << 30})
    monkeypatch.setattr(calibrate, "calibrate", lambda **_: measured)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "box.toml"
    assert cli("machine", "calibrate", "-o", path).status == 0
    assert "3.0 GiB" in cli("machine", "show", path).out
    assert ts.Machine.load(str(path)).name == "box"
    assert ts.Machine.load("host").tier["dram"].capacity_nbytes == 3 << 30
    for wrong in (tmp_path / "missing" / "box.toml", tmp_path):
        said = cli("machine", "calibrate", "-o", wrong)
        assert said.status == 2
        assert f"cannot write {wrong}" in " ".join(said.err.split())


def test_profiles_as_json(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorstow.runtime import calibrate
    from tests.conftest import host_machine

    listed = cli("machine", "list", "--json").json["machines"]
    shown = cli("machine", "show", "h100", "--json").json
    assert shown in listed
    assert ts.Machine.load("h100").tier["hbm"].capacity_nbytes in [t["capacity_nbytes"] for t in shown["tiers"]]
    monkeypatch.setattr(calibrate, "calibrate", lambda **_: host_machine())  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path / "cache"))
    assert cli("machine", "calibrate", "--json").json["name"] == "host"
