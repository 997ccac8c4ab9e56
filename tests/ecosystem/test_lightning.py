"""PlannedSteps takes the steps of Lightning's Trainer, to the bit, and logs what they log."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensorstow.ir.errors import InputError
from tests.conftest import host_machine

pl: Any = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from tensorstow.ecosystem.lightning import PlannedSteps  # noqa: E402 - it needs lightning

WIDTH = 64
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(pl.LightningModule):
    def __init__(self, *, logs: bool, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logs, self.automatic_optimization = logs, not manual
        self.net = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, WIDTH))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, wanted = batch
        loss = (self.net(x) - wanted).pow(2).mean()
        if self.logs:
            self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def trained(net: Any, *callbacks: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = TensorDataset(*(torch.randn(36, WIDTH, generator=generator) for _ in range(2)))
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks), **QUIET)
    trainer.fit(net, DataLoader(rows, 8))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return logged, {name: p.detach().clone() for name, p in net.named_parameters()}


def planned_steps() -> Any:
    return PlannedSteps(host_machine().with_capacity({"dram": 8 << 20}), {"time_limit_s": 3})


@pytest.mark.slow
@pytest.mark.parametrize("logs", [False, True], ids=["silent", "logging"])
def test_parameters_and_logs_are_those_without_it(logs: bool) -> None:
    told, wanted = trained(Net(logs=logs))
    callback = planned_steps()
    net = Net(logs=logs)
    said, found = trained(net, callback)
    assert said == told
    assert bool(told) == logs
    assert callback.planned.plan.certificate.peak_nbytes["dram"] <= 8 << 20
    assert (callback.planned.training.hooked is not None) == logs, "what logs is no single graph"
    assert callback.unplanned == 1, "the last batch is smaller"
    assert "training_step" not in vars(net), "the module is as it was"
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
        assert not torch.equal(value, dict(Net(logs=logs).named_parameters())[name]), "nothing was trained"


def test_manual_optimization_is_refused() -> None:
    net = Net(logs=False, manual=True)
    with pytest.raises(InputError, match="automatic optimization"):
        trained(net, planned_steps())
    assert "training_step" not in vars(net)
