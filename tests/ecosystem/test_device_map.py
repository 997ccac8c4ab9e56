"""Plans as accelerate's maps and back: accelerate runs what comes out, and what goes in is what the plan does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.ir.errors import InfeasibleError, InputError
from tests.conftest import host_machine
from tests.models import write_mlp

WIDTH = 256
LAYER = 4 * WIDTH * WIDTH


def network() -> nn.Sequential:
    torch.manual_seed(0)
    pairs = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)) for _ in range(4)]
    return nn.Sequential(*pairs).eval()


INPUTS = (torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH),)


def planned(share: float, strategy: str = "belady-prefetch") -> tuple[ts.PlanFile, nn.Module]:
    module = network()
    machine = host_machine().with_capacity({"dram": int(share * 8 * LAYER) + 600_000})
    return ts.plan(module, INPUTS, machine=machine, strategy=strategy, time_limit_s=4), module


def test_accelerate_runs_the_map_with_the_same_bits(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    file, module = planned(0.5)
    devices: dict[str, Any] = ts.device_map(file, module)  # pyright: ignore[reportAssignmentType]
    assert set(devices.values()) == {"cpu", "disk"}
    wanted = network()(*INPUTS)
    dispatched = dispatch_model(module, dict(devices), main_device=torch.device("cpu"), offload_dir=str(tmp_path))
    assert torch.equal(dispatched(*INPUTS), wanted)


def test_a_module_is_below_if_any_of_its_weights_leaves() -> None:
    file, module = planned(0.5)
    devices = ts.device_map(file, module)
    moved = {t.storage for t in file.plan.transfers}
    assert file.module is not None
    for parameter in file.module.parameters:
        storage = file.graph.tensor[parameter.tensor].storage
        (device,) = {d for key, d in devices.items() if parameter.names[0].startswith(f"{key}.")}
        assert device == ("disk" if storage in moved else "cpu")


def test_what_agrees_is_named_once() -> None:
    file, module = planned(3.0, "resident")
    assert ts.device_map(file, module) == {"": "cpu"}


def test_a_map_becomes_a_plan_that_keeps_and_streams_as_it_says() -> None:
    devices = {"0": "cpu", "1": "disk", "2.0": "disk", "2.2": "cpu", "3": "cpu"}
    machine = host_machine().with_capacity({"dram": 7 * LAYER + 600_000})
    module = network()
    wanted = network()(*INPUTS)
    file = ts.from_device_map(module, INPUTS, devices=devices, machine=machine)
    assert ts.device_map(file, module) == devices
    assert file.plan.certificate.moved_nbytes["ssd->dram"] == pytest.approx(3 * LAYER, rel=0.01)
    assert file.plan.certificate.simulated_s >= file.plan.certificate.bound_s > 0
    applied = ts.apply(file, module)
    assert torch.equal(applied(*INPUTS), wanted)
    applied.tensorstow.close()  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess, reportAttributeAccessIssue]


def test_a_map_that_does_not_fit_or_cover_is_refused() -> None:
    machine = host_machine().with_capacity({"dram": 3 * LAYER + 600_000})
    with pytest.raises(InfeasibleError, match="device-map"):
        ts.from_device_map(network(), INPUTS, devices={"": "cpu"}, machine=machine)
    with pytest.raises(InputError, match=r"no device for weight '1\.0\.weight'"):
        ts.from_device_map(network(), INPUTS, devices={"0": "disk"}, machine=machine)


def test_plans_of_other_things_have_no_map(tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "m.onnx", width=64, layers=2)
    file = ts.plan(model, machine=ts.Machine.load("rtx4090"))
    with pytest.raises(InputError, match="an ONNX file"):
        ts.device_map(file)
