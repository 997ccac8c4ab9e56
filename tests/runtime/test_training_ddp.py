"""A planned step in DistributedDataParallel: two processes on gloo, gradients as those of the plain module in it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

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


def work(rank: int, folder: str) -> None:
    """What each process does: the batches are its own, the gradients are the mean."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
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


def test_gradients_are_averaged_over_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)  # pyright: ignore
