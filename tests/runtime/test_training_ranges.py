"""Saved activations that leave memory in part: a range of rows rests on disk, the others stay where they are."""

from __future__ import annotations

import pytest
import torch

from tensorstow.ir.check import check
from tensorstow.ir.files import PlanFile
from tensorstow.ir.graph import Graph
from tensorstow.planner.instance import make_instance
from tensorstow.planner.place import place
from tensorstow.planner.realise import realise
from tensorstow.planner.stays import Decisions, live_peak, make_stays
from tensorstow.planner.training import KEPT, lower_joint, placed
from tensorstow.runtime.training.executor import TrainingExecutor
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.losses import loss_of

from .training_steps import box, differing, gpt, gradients, plain_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(graph: Graph, storage: str) -> tuple[int, int]:
    """Rows along the first dimension of the largest tensor in a storage, and the bytes of each."""
    tensor = max((t for t in graph.tensors if t.storage == storage), key=lambda t: t.nbytes)
    rows = (tensor.shape or (1,))[0]
    return rows, tensor.nbytes // max(1, rows)


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_range_of_rows_leaves_and_the_rest_stays(share: float) -> None:
    case = gpt(0.0)
    twin = case.twin()
    joint = capture_joint(case.module, case.batch, loss=case.loss or loss_of)
    lowered = placed(lower_joint(joint, name="gpt"), KEPT, key=joint.key)
    graph, machine = lowered.graph, box(1 << 30)
    instance = make_instance(graph, machine, mode="training")
    evicted: dict[tuple[int, int], int] = {}
    for gap in sorted(instance.gaps, key=lambda g: g.start - g.end):
        item = instance.items[gap.item]
        rows, nbytes = rows_of(graph, item.storage)
        if not item.homed and gap.item not in {i for i, _ in evicted} and rows > 1 and len(evicted) < 6:
            evicted[gap.item, gap.before] = int(rows * share) * nbytes
    decisions = Decisions(frozenset(evicted), evicted, prefetch=True)
    stays = make_stays(instance, decisions.evicted, decisions.kept_nbytes)
    whole = live_peak(instance, make_stays(instance, frozenset()))
    assert live_peak(instance, stays) <= whole
    found = place(instance, stays, decisions, packing_time_s=5.0)
    assert found is not None
    plan = realise(instance, found, "by hand")
    assert not check(plan, graph, machine)
    left = sum(graph.storage[instance.items[i].storage].nbytes - kept for (i, _), kept in evicted.items())
    assert 0 < left < sum(graph.storage[instance.items[i].storage].nbytes for i, _ in evicted)
    file = PlanFile(plan, graph, machine, None, None, 0, training=lowered.program)
    with TrainingExecutor(file, case.module, loss=case.loss) as step:
        for seed in range(3):
            torch.manual_seed(seed)
            got = step(*case.batch)
            got.backward()
            torch.manual_seed(seed)
            wanted = plain_loss(case, twin)
            wanted.backward()
            assert torch.equal(got.detach(), wanted.detach())
            assert not differing(gradients(case.module), gradients(twin))
            assert step.stats.written_nbytes == step.stats.read_nbytes == left
