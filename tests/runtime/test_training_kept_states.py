"""States of the optimizer that a plan leaves in memory are the optimizer's: none of them lies in memory of the plan."""

from __future__ import annotations

import pytest
import torch

from tensorstow.ir.files import PlanFile
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.planner.training import KEPT, lower_joint, placed, with_updates
from tensorstow.planner.training.optimizer import optimizer_calls
from tensorstow.runtime.training.executor import TrainingExecutor
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.losses import loss_of

from .training_steps import Case, box, differing, gpt, plain_loss, state

pytestmark = pytest.mark.usefixtures("one_thread")


def all_kept(case: Case, optimizer: torch.optim.Optimizer) -> PlanFile:
    """A plan in as much memory as the step takes, states beside it."""
    joint = capture_joint(case.module, case.batch, loss=loss_of)
    step = with_updates(lower_joint(joint, name="kept"), optimizer_calls(optimizer, case.module))
    lowered = placed(step, KEPT, key=joint.key)
    whole = make_instance(lowered.graph, box(1 << 40), mode="training")
    machine = box(whole.peak_of_all() + whole.workspace_nbytes)
    plan = plan_graph(lowered.graph, machine, strategy="stow", mode="training", time_limit_s=4.0)
    return PlanFile(plan, lowered.graph, machine, None, None, 0, training=lowered.program)


def test_they_take_nothing_of_the_workspace() -> None:
    case = gpt()
    twin = case.twin()
    optimizer = torch.optim.AdamW(case.module.parameters(), lr=1e-2)
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    with TrainingExecutor(all_kept(case, optimizer), case.module, optimizer=optimizer) as step:
        overflows: list[int] = []
        for seed in range(3):
            torch.manual_seed(seed)
            step(*case.batch)
            torch.manual_seed(seed)
            plain.zero_grad()
            plain_loss(case, twin).backward()
            plain.step()
            assert not differing(state(case.module), state(twin)), seed
            stats = step.region_stats
            assert (stats.workspace_live, stats.workspace_nbytes) == (0, 0), "what is in use after a step"
            overflows.append(stats.overflows)
        states = [s for held in optimizer.state.values() for s in held.values() if s.nbytes >= 1 << 16]
        assert states, "some are of the size that the workspace takes"
        assert overflows[1] - overflows[0] == overflows[2] - overflows[1] <= overflows[0]


def test_a_step_that_fails_before_an_update_shows_no_state_of_it() -> None:
    case = gpt()
    optimizer = torch.optim.AdamW(case.module.parameters(), lr=1e-2)
    with TrainingExecutor(all_kept(case, optimizer), case.module, optimizer=optimizer) as step:
        with pytest.raises(IndexError):
            step(case.batch[0] + 10**6, case.batch[1])
        assert not optimizer.state_dict()["state"]
        step(*case.batch)
        assert len(optimizer.state_dict()["state"]) == len(list(case.module.parameters()))
