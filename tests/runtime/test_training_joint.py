"""Joint graphs: what their placeholders and results are, what decides about their key, and what has none."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.runtime.training.emit import emit_plain
from tensorstow.runtime.training.joint import capture_joint, compile_joint
from tensorstow.runtime.training.joint_graph import Joint, Sections
from tensorstow.runtime.training.losses import loss_of

LOGGER = logging.getLogger("small")


class Small(nn.Module):
    """A tied weight, a batch norm, dropout, an operator in place, a tensor that is no buffer, and a log line."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        first = nn.Linear(8, 8)
        self.body = nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(dropout))
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = first.weight
        self.shift = torch.ones(8)

    def forward(self, x: torch.Tensor, extra: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """x is [rows, 8], extra['y'] too."""
        LOGGER.warning("called")
        return {"loss": (self.head(self.body(x)) + self.shift - extra["y"]).square().mean()}


def batch(rows: int = 4) -> tuple[Any, ...]:
    torch.manual_seed(0)
    return torch.randn(rows, 8), {"y": torch.randn(rows, 8)}


def captured(module: nn.Module, rows: int = 4) -> Joint:
    return capture_joint(module, batch(rows), loss=loss_of)


def test_placeholders_have_their_names() -> None:
    module = Small()
    joint = captured(module)
    kinds: dict[str, set[tuple[str, ...]]] = {}
    for p in joint.placeholders:
        kinds.setdefault(p.kind, set()).add(p.names)
    assert kinds["parameter"] == {
        ("body.0.weight", "head.weight"),
        ("body.0.bias",),
        ("body.1.weight",),
        ("body.1.bias",),
    }
    assert kinds["buffer"] == {("body.1.num_batches_tracked",), ("body.1.running_mean",), ("body.1.running_var",)}
    assert kinds["input"] == {("args[0]",), ("args[1]['y']",)}
    assert len(kinds["constant"]) == 1 and "shift" in next(iter(kinds["constant"]))[0]
    (tangent,) = (p for p in joint.placeholders if p.kind == "tangent")
    loss = joint.outputs[tangent.output or 0]
    assert loss is not None and loss.meta["val"].shape == ()
    by_node = {p.node: p for p in joint.placeholders}
    assert {by_node[n].kind for n in joint.updates.values()} == {"buffer"} and len(joint.updates) == 3
    assert {by_node[n].kind for n in joint.gradients} == {"parameter"} and len(joint.gradients) == 4


def test_nothing_is_computed_or_changed() -> None:
    module = Small()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    given = batch()
    state = torch.random.get_rng_state()
    capture_joint(module, given, loss=loss_of)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_on_meta_the_graph_is_that_of_the_cpu() -> None:
    class Attention(nn.Module):
        """Attention is another operator on another device."""

        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """x is [rows, heads, tokens, 16]."""
            return nn.functional.scaled_dot_product_attention(self.q(x), x, x, is_causal=True).mean()

    real = capture_joint(Attention(), (torch.zeros(2, 2, 8, 16),))
    with torch.device("meta"):
        module, x = Attention(), torch.zeros(2, 2, 8, 16)
    assert capture_joint(module, (x,)).key == real.key
    assert module.q.weight.is_meta and x.is_meta


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 3}, {"reduction": "sum"}])
def test_cross_entropy_on_meta_has_its_backward(options: dict[str, Any]) -> None:
    def loss(logits: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
        return nn.functional.cross_entropy(logits, labels, **options)

    joints: list[Joint] = []
    for device in ("cpu", "meta"):
        with torch.device(device), torch.no_grad():  # whoever plans may have gradients off
            joints.append(capture_joint(nn.Linear(8, 5), (torch.zeros(4, 8),), loss=loss))
    on_cpu, on_meta = joints
    assert on_meta.key == on_cpu.key
    called = {str(n.target) for n in on_meta.module.graph.nodes if n.op == "call_function"}
    assert "aten.nll_loss_backward.default" in called
    assert len(on_meta.gradients) == 2


def test_the_key_tells_what_is_computed() -> None:
    key = captured(Small()).key
    assert captured(Small()).key == key
    frozen = Small()
    frozen.body[0].bias.requires_grad_(False)
    halves = Small().to(torch.float64)
    others = [captured(Small(0.25)), captured(Small().eval()), captured(Small(), rows=5), captured(frozen)]
    x, extra = batch()
    others.append(capture_joint(halves, (x.double(), {"y": extra["y"].double()}), loss=loss_of))
    with torch.autocast("cpu"):
        others.append(captured(Small()))
    assert len({j.key for j in others} | {key}) == len(others) + 1


def test_the_key_tells_what_branches_compute() -> None:
    def captured_with(factor: float) -> Joint:
        def loss(y: torch.Tensor) -> torch.Tensor:
            return torch.cond(y.sum() > 0, lambda y: y * factor, lambda y: y.cos(), (y,)).square().mean()  # type: ignore[no-any-return]

        return capture_joint(nn.Linear(8, 8), (torch.zeros(4, 8),), loss=loss)

    key = captured_with(2.0).key
    assert captured_with(2.0).key == key
    assert captured_with(3.0).key != key


class Branches(nn.Module):
    """Its control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x is [rows, 8]."""
        y = self.layer(x)
        if y.sum() > 0:  # here
            y = y * 2
        return y.sum()


def test_refusals_name_the_line() -> None:
    with pytest.raises(InputError, match=r"test_training_joint.py:\d+: if y.sum\(\) > 0:  # here"):
        capture_joint(Branches(), (torch.zeros(2, 8),))
    with pytest.raises(InputError, match=r"if y.sum\(\) > 0:  # here"):
        compile_joint(Branches(), build)(torch.zeros(2, 8))
    with pytest.raises(InputError, match=r"\[2, 9\] X \[8, 8\]"):
        capture_joint(nn.Linear(8, 8), (torch.zeros(2, 9),))
    with pytest.raises(InputError, match="nothing to train"):
        capture_joint(nn.Linear(8, 8).requires_grad_(False), (torch.zeros(2, 8),))


class State:
    """What stands between forward and backward."""

    def __init__(self, saved: list[Any]) -> None:
        self.saved = saved


states: list[weakref.ref[State]] = []


def build(joint: Joint) -> Sections:
    code = emit_plain(joint)

    def forward(primals: list[Any]) -> tuple[list[Any], State]:
        outputs, saved = code.forward(primals)
        assert not primals
        state = State(saved)
        states.append(weakref.ref(state))
        return outputs, state

    def backward(state: object, tangents: list[Any]) -> list[Any]:
        assert isinstance(state, State)
        return code.backward(state.saved, tangents)

    return Sections(forward, backward, code.read)


def test_a_state_lives_as_long_as_its_result() -> None:
    step = compile_joint(Small(), build, loss_of)
    states.clear()
    first, second = step(*batch()), step(*batch())
    assert [s() is not None for s in states] == [True, True]
    del first
    gc.collect()
    assert [s() is not None for s in states] == [False, True]
    second.backward()
    gc.collect()
    assert [s() is not None for s in states] == [False, False]


def test_errors_of_what_is_built_come_as_they_are() -> None:
    def refuse(joint: Joint) -> Sections:
        raise PlanMismatchError("not this one")

    def broken(joint: Joint) -> Sections:
        raise ZeroDivisionError

    with pytest.raises(PlanMismatchError, match=r"^not this one$"):
        compile_joint(Small(), refuse, loss_of)(*batch())
    with pytest.raises(ZeroDivisionError):
        compile_joint(Small(), broken, loss_of)(*batch())
