"""A planned step in DistributedDataParallel: two processes on gloo, gradients as those of the plain module in it."""

from __future__ import annotations

import copy
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from tensorstow.dynamo import backend
from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import Case, differing, gpt, gradients, plan_of


class Planned(nn.Module):
    """A module whose forward is a planned step."""

    def __init__(self, case: Case, step: TrainingExecutor) -> None:
        super().__init__()
        self.module = case.module
        self.step = step

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        return self.step(*batch)


def meet(rank: int, folder: str) -> None:
    """Begin a group of two. Who waits for the other one longer than a loaded machine takes fails."""
    patience = timedelta(minutes=3)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2, timeout=patience
    )


def work(rank: int, folder: str) -> None:
    """What each process does: the batches are its own, the gradients are the mean."""
    meet(rank, folder)
    torch.set_num_threads(1)
    case = gpt()
    twin = case.twin()
    with TrainingExecutor(plan_of(case, 0.3), case.module) as step:
        parallel, plain = DistributedDataParallel(Planned(case, step)), DistributedDataParallel(twin)
        generator = torch.Generator().manual_seed(rank)
        batch = tuple(torch.randint(96, (8, 64), generator=generator) for _ in range(2))
        for seed in range(2):
            torch.manual_seed(seed)
            parallel(*batch).backward()
            torch.manual_seed(seed)
            plain(*batch).backward()
        assert not differing(gradients(case.module), gradients(twin))
        assert step.stats.written_nbytes > 0, "the plan was followed"
    distributed.destroy_process_group()


def work_compiled(rank: int, folder: str) -> None:
    """The same with `DDP(torch.compile(...))`; the loss is taken outside."""
    meet(rank, folder)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(64, 64), nn.GELU())))
    twin = copy.deepcopy(module)
    options: dict[str, Any] = {"budget": "1400KiB", "time_limit_s": 1}
    planned: Any = torch.compile(module, backend=backend, fullgraph=True, options=options)
    parallel, plain = DistributedDataParallel(planned), DistributedDataParallel(twin)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        batch = torch.randn(512, 64, generator=generator)
        for run in (parallel, plain):
            run(batch).square().mean().backward()
        found = gradients(module)
        assert len(found) == 6 and not differing(found, gradients(twin))
    distributed.barrier()
    distributed.destroy_process_group()


def test_a_compiled_module_inside_is_averaged_too(tmp_path: Path) -> None:
    ranks: Any = multiprocessing.spawn(work_compiled, args=(str(tmp_path),), nprocs=2, join=False)  # pyright: ignore
    until = time.monotonic() + 300
    try:
        while not ranks.join(timeout=5):
            assert time.monotonic() < until, "a process waits for the other one for ever"
    finally:
        for process in ranks.processes:
            process.kill()


def test_gradients_are_averaged_over_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
