"""Machine 'cuda': measured, planned and run with a fake device; refused on the command line without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow import hosts, workflow
from tensorstow.execute import run_plan
from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.files import read_plan, write_plan
from tensorstow.ir.machine import Machine, TierKind
from tensorstow.runtime import calibrate, torch_calibrate
from tensorstow.runtime.module import devices, executor
from tensorstow.runtime.module.fake_device import FakeDevice
from tests.conftest import Cli

from .test_modules import CALLABLE

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this box has a CUDA device")
HBM = 1 << 20


class Fake:
    """A probe that answers with round figures."""

    name = "a fake device"

    def free_nbytes(self) -> int:
        return HBM

    def copy_s(self, nbytes: int, *, inward: bool) -> float:
        return 1e-6 + nbytes / (20e9 if inward else 10e9)

    def move_s(self, nbytes: int) -> float:
        return 2 * nbytes / 1e12

    def product_s(self, side: int, dtype: str) -> float:
        return 2 * side**3 / (50e12 if dtype == "float32" else 100e12)

    def launch_s(self) -> float:
        return 5e-6


def _fingerprint(host: str) -> str:
    return f"cuda of {host}"


def _fingerprint_elsewhere(host: str) -> str:
    del host
    return "made there"


def _fixed_part(file: object) -> int:
    del file
    return 12345


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakeDevice]:
    """As if this box had a CUDA device; the fakes that were made."""
    made: list[FakeDevice] = []

    def device_for(unit: Any, machine: Machine) -> FakeDevice | None:
        if machine.tier[unit.tier].kind is TierKind.DRAM:
            return None
        made.append(FakeDevice(machine.tier[unit.tier].capacity_nbytes))
        return made[-1]

    monkeypatch.setattr(torch_calibrate, "cuda_fingerprint", _fingerprint)
    monkeypatch.setattr(torch_calibrate, "CudaProbe", Fake)
    monkeypatch.setattr(torch_calibrate, "cuda_profile_path", lambda: tmp_path / "cuda.toml")
    monkeypatch.setattr(devices, "device_for", device_for)
    monkeypatch.setattr(executor, "device_for", device_for)
    monkeypatch.setattr(workflow, "measure_fixed", _fixed_part)
    return made


@pytest.mark.usefixtures("cuda")
def test_the_profile_has_what_was_measured_and_is_kept() -> None:
    machine = hosts.get_machine("cuda")
    host = hosts.get_machine("host")
    assert machine.units[0].tier == "hbm"
    assert machine.tier["hbm"].capacity_nbytes == HBM
    assert machine.link["dram", "hbm"].bytes_per_s == pytest.approx(20e9, rel=1e-3)
    assert machine.link["hbm", "dram"].bytes_per_s == pytest.approx(10e9, rel=1e-3)
    assert machine.link["ssd", "dram"] == host.link["ssd", "dram"]
    assert dict(machine.units[0].flops_per_s)["float16"] == pytest.approx(100e12)
    assert hosts.runs_here(machine)
    assert not hosts.on_processor(machine)
    assert hosts.on_processor(host)
    assert hosts.get_machine("cuda") == machine  # read back
    with pytest.raises(PlanMismatchError, match="cuda"):
        hosts.require_host(replace(machine, fingerprint="another"))


def test_a_plan_for_it_runs_as_printed(cuda: list[FakeDevice], tmp_path: Path) -> None:
    script = tmp_path / "nets.py"
    script.write_text(CALLABLE)
    machine = ts.Machine.load("cuda", hbm="900KiB", dram="1GiB")
    file = ts.plan(f"{script}:make", machine=machine, time_limit_s=2)
    moved = file.plan.certificate.moved_nbytes
    assert moved["dram->hbm"] > 0
    assert file.promised_peak_nbytes == file.fixed_nbytes + file.plan.certificate.peak_nbytes.get("dram", 0)
    write_plan(file, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json").machine.tier["hbm"].capacity_nbytes == 900 << 10
    found = run_plan(tmp_path / "plan.json", repeat=2, verify=True)
    assert found.verified is not None
    assert found.verified.bit_identical
    assert cuda


@pytest.mark.usefixtures("cuda")
def test_a_module_runs_on_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(256, 256), nn.GELU())]).eval()
    x = torch.randn(4, 256)
    with torch.no_grad():
        expected = net(x)
    machine = ts.Machine.load("cuda", hbm="600KiB", dram="700KiB")
    applied = ts.apply(ts.plan(net, (x,), machine=machine, time_limit_s=2), net)
    assert torch.equal(applied(x), expected)


@without_cuda
def test_without_a_device_it_is_refused(cli: Cli, tmp_path: Path) -> None:
    script = tmp_path / "nets.py"
    script.write_text(CALLABLE)
    said = cli("plan", f"{script}:make", "--machine", "cuda", "--json")
    assert said.status == 2
    assert "CUDA" in said.json["error"]
    assert "--machine host" in said.json["error"]
    with pytest.raises(InputError, match="CUDA"):
        ts.Machine.load("cuda")


@without_cuda
def test_a_plan_that_was_made_elsewhere_is_refused(cli: Cli, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_calibrate, "cuda_fingerprint", _fingerprint_elsewhere)
        patch.setattr(torch_calibrate, "cuda_profile_path", lambda: tmp_path / "cuda.toml")
        patch.setattr(torch_calibrate, "CudaProbe", Fake)
        patch.setattr(workflow, "measure_fixed", _fixed_part)
        script = tmp_path / "nets.py"
        script.write_text(CALLABLE)
        machine = ts.Machine.load("cuda", hbm="900KiB", dram="1GiB")
        write_plan(ts.plan(f"{script}:make", machine=machine, time_limit_s=1), tmp_path / "plan.json")
    said = cli("run", tmp_path / "plan.json", "--json")
    assert said.status == 2
    assert "CUDA" in said.json["error"]
    assert calibrate.host_fingerprint() != "made there"
