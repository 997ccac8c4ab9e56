"""`torch.compile(model, backend="tensorstow")`: the bits of the plain model, inside a budget, or a clear refusal."""

from __future__ import annotations

import copy
import warnings
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from tensorstow import dynamo_budget
from tensorstow.dynamo import backend
from tensorstow.dynamo_budget import Budget, PlannedGraph

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_compiled")


@pytest.fixture
def nothing_compiled() -> None:
    """Modules of a class, compiled with equal options, have their graphs in common, those of other tests too."""
    torch.compiler.reset()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1))))


def compiled(module: nn.Module, fullgraph: bool = True, **options: Any) -> Any:
    chosen: Any = {"time_limit_s": 1, **options}
    found: Any = torch.compile(module, backend=backend, fullgraph=fullgraph, dynamic=False, options=chosen)
    return found


def test_a_compiled_model_trains_as_the_plain_one() -> None:
    module = net()
    twin = copy.deepcopy(module)
    step, x = compiled(module, budget="1400KiB"), torch.randn(512, 64)
    for seed in range(2):
        for run in (step, twin):
            torch.manual_seed(seed)
            run(x).square().mean().backward()  # the loss is outside of what is compiled
        for ours, plain in zip(module.parameters(), twin.parameters(), strict=True):
            assert ours.grad is not None and plain.grad is not None
            assert torch.equal(ours.grad, plain.grad)
    with torch.no_grad():
        module.eval()
        assert torch.equal(step(x), twin.eval()(x))


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    with pytest.raises(BackendCompilerFailed, match=r"the smallest feasible budget is --tier dram=\d+"):
        compiled(net(), budget=100_000)(torch.randn(512, 64))


def test_other_options_are_refused() -> None:
    with pytest.raises(BackendCompilerFailed, match="knows no option 'budgte'; its options are budget, machine"):
        compiled(net(), budgte="1GiB")(torch.randn(8, 64))


class Broken(nn.Module):
    """Goes on as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 8] to the same."""
        x = self.layers[0](x)
        if x.sum() > 0:  # here
            x = -x
        return self.layers[1](x)


def test_a_graph_break_is_refused_with_its_line() -> None:
    with pytest.raises(BackendCompilerFailed, match=r"cut in two at .*test_training_dynamo.py:\d+: if x.sum\(\) > 0"):
        compiled(Broken(), fullgraph=False)(torch.randn(4, 8))


def test_graphs_of_other_batches_share_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Budget] = []

    def noted(capacity_nbytes: int) -> Budget:
        made.append(Budget(capacity_nbytes))
        return made[-1]

    monkeypatch.setattr(dynamo_budget, "Budget", noted)
    module = net()
    twin = copy.deepcopy(module)
    step = compiled(module, budget="1400KiB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed, rows in enumerate((512, 384, 512, 384, 512)):
            torch.manual_seed(rows)
            x = torch.randn(rows, 64)
            for run, net_ in ((step, module), (twin, twin)):
                net_.zero_grad()
                torch.manual_seed(seed)
                run(x).square().mean().backward()
            for ours, plain in zip(module.parameters(), twin.parameters(), strict=True):
                assert ours.grad is not None and plain.grad is not None and torch.equal(ours.grad, plain.grad)
            assert len(made) == 1 and len(made[0].admitted) == 1, "one arena at a time"


def test_steps_that_are_under_way_together_and_take_more_than_the_budget_are_told() -> None:
    module = net()
    step = compiled(module, budget="1400KiB")
    first = step(torch.randn(512, 64)).square().mean()
    with pytest.warns(UserWarning, match=r"steps of 2 graphs .* take \d+ bytes of a budget of 1433600"):
        second = step(torch.randn(384, 64)).square().mean()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (first + second).backward()
        step(torch.randn(384, 64)).square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("last", [nn.Dropout(0.1), nn.Tanh()])
def test_a_dropped_forward_holds_no_arena(last: nn.Module) -> None:
    """The backward of tanh reads its result, which the caller has."""
    step = compiled(nn.Sequential(*list(net())[:-1], last), budget="1400KiB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (512, 384, 512):
            step(torch.randn(rows, 64))


def test_arenas_that_go_into_the_budget_together_stay() -> None:
    file = Mock(machine=Mock(units=[Mock(tier="dram")]), training=Mock(kept_nbytes=40))
    file.plan = Mock(arena_nbytes={"dram": 20}, workspace_nbytes={"dram": 50})
    graphs = [PlannedGraph(file, Mock(), Budget(0)) for _ in range(3)]
    closed: list[PlannedGraph] = []
    for graph in graphs:
        graph.close = lambda graph=graph: closed.append(graph)  # type: ignore[method-assign]
    roomy = Budget(100)  # 40 that all share, 30 for each
    for number in (0, 1, 0, 2):
        roomy.admit(graphs[number])
    assert closed == [graphs[1]], "the longest unused"
