"""PlannedTrainer takes the steps of transformers' Trainer, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from tensorstow.ecosystem.trainer import PlannedTrainer
from tests.conftest import host_machine

WIDTH = 64


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, WIDTH))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.net(x) - labels).pow(2).mean()}


def trained(kind: type[Trainer], folder: Path, rows: int, **more: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    data = [
        {"x": torch.randn(WIDTH, generator=generator), "labels": torch.randn(WIDTH, generator=generator)}
        for _ in range(rows)
    ]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, num_train_epochs=1, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, seed=3, logging_strategy="no", max_grad_norm=0.01,
    )  # fmt: skip
    trainer: Any = kind(Net(), arguments, train_dataset=data, **more)  # pyright: ignore[reportArgumentType]
    trainer.train()
    return trainer, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.slow
def test_parameters_are_those_of_trainer_to_the_bit(tmp_path: Path) -> None:
    machine = host_machine().with_capacity({"dram": 8 << 20})
    _, wanted = trained(Trainer, tmp_path, 36)
    trainer, found = trained(PlannedTrainer, tmp_path, 36, machine=machine, plan_options={"time_limit_s": 3})
    assert trainer.planned is not None
    assert trainer.planned.plan.certificate.peak_nbytes["dram"] <= 8 << 20
    assert trainer.unplanned == 1, "the last batch is smaller"
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
        assert not torch.equal(value, dict(Net().named_parameters())[name]), "nothing was trained"
