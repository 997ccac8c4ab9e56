"""FSDP2 (`fully_shard`), two processes on gloo: a sharded module is refused, with what to use instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tensorstow as ts
from tensorstow.ir.errors import InputError

from .training_steps import box, mean_square


def work(rank: int, folder: str) -> None:
    """What each process does: it holds a part of each parameter, and cannot plan them."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    try:
        module, batch = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), (torch.randn(4, 16),)
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        for optimizer in (None, torch.optim.AdamW(module.parameters())):
            with pytest.raises(InputError, match=r"FSDPModule.*DistributedDataParallel"):
                ts.plan(module, batch, machine=box(1 << 30), mode="training", loss=mean_square, optimizer=optimizer)
    finally:
        distributed.destroy_process_group()


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
