"""Emitted code: what it computes, what it holds, and how it reads."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tensorstow.ir.errors import PlanMismatchError
from tensorstow.runtime.training.emit import emit, emit_plain
from tensorstow.runtime.training.emit_calls import Call
from tensorstow.runtime.training.functions import function_of
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.joint_graph import Joint

from .training_steps import gpt, resnet


def chain(layers: int = 3) -> tuple[nn.Module, Joint, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(layers)))
    x = torch.randn(4, 8)
    return module, capture_joint(module, (x,), loss=lambda y: y.square().mean()), x


def primals(joint: Joint, module: nn.Module, x: torch.Tensor) -> list[Any]:
    values = dict(module.named_parameters()) | {"args[0]": x}
    return [values[p.names[0]].detach() for p in joint.primals]


def names(joint: Joint) -> list[str]:
    return [n.name for n in joint.module.graph.nodes if n.op == "call_function"]


def nothing(*_: object) -> torch.Tensor:
    raise AssertionError


def check_gradients(joint: Joint, module: nn.Module, x: torch.Tensor, code: Any) -> None:
    outputs, saved = code.forward(primals(joint, module, x))
    got = code.backward(saved, [torch.ones(())])
    assert not saved
    loss = module(x).square().mean()
    loss.backward()
    assert torch.equal(outputs[0], loss)
    by_name = {p.names[0]: g for p, g in zip(joint.primals, got, strict=True)}
    assert all(torch.equal(p.grad, by_name[n]) for n, p in module.named_parameters() if p.grad is not None)


def test_plain_code_is_the_plain_step() -> None:
    module, joint, x = chain()
    check_gradients(joint, module, x, emit_plain(joint))


def views_left_out(joint: Joint) -> list[str]:
    return [n for n in names(joint) if not n.startswith(("t", "view", "detach", "expand"))]


def test_operators_are_called_again_and_views_cut_anew() -> None:
    module, joint, x = chain()
    ops = views_left_out(joint)
    turn = ops.index("mean") + 1
    again = [op for op in ops[:turn] if op.startswith(("addmm", "sigmoid"))]
    backward = [n for n in ops[turn:] if n not in again]
    code = emit(joint, [Call(op) for op in (*ops[:turn], "turn", *again, *backward)], turn, nothing, {})
    check_gradients(joint, module, x, code)
    given = code.source[code.source.index("def backward") :].split(" = saved")[0]
    assert not any(op in given for op in again), "nothing that is made again is saved"
    assert not any(f" {view}," in given for view in ("t", "t_1", "t_2")), "views are never saved"
    plain = emit_plain(joint)
    held = plain.source[plain.source.index("def backward") :].split(" = saved")[0]
    assert "sigmoid" in held


def test_values_go_when_they_have_been_used() -> None:
    module, joint, x = chain(layers=6)
    code = emit_plain(joint)
    living: list[weakref.ref[torch.Tensor]] = []
    most = 0

    class Counts(TorchDispatchMode):
        """Counts the results that are alive."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            result = func(*args, **(kwargs or {}))
            living.extend(weakref.ref(t) for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
            most = max(most, sum(r() is not None for r in living))
            return result

    with Counts():
        outputs, saved = code.forward(primals(joint, module, x))
    gc.collect()
    held = {t.untyped_storage().data_ptr() for t in (*outputs, *saved)}
    left = [t for t in (r() for r in living) if t is not None]
    assert left and all(t.untyped_storage().data_ptr() in held for t in left)
    assert most <= len(left) + 4, "beside what is saved, an operator's operands and results"


def test_what_the_graph_has_not_is_refused() -> None:
    _, joint, _ = chain()
    ops = views_left_out(joint)
    turn = ops.index("mean") + 1
    calls = [Call(op) for op in (*ops[:turn], "turn", *ops[turn:])]
    with pytest.raises(PlanMismatchError, match="step 0 of the plan calls 'bogus'"):
        emit(joint, [Call("bogus"), *calls], turn + 1, nothing, {})
    with pytest.raises(PlanMismatchError, match="before it is made"):
        emit(joint, [calls[1], calls[0], *calls[2:]], turn, nothing, {})
    with pytest.raises(PlanMismatchError, match="before it is made"):
        emit(joint, [*calls[: turn - 2], *calls[turn:]], turn - 2, nothing, {})


class _Sees(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [gpt, resnet])
def test_fast_functions_are_the_operators_of_the_graph(make: Any) -> None:
    """On real tensors each function leads to the very overload that the node names, or to what that one calls."""
    case = make()
    joint = capture_joint(case.module, case.batch, loss=case.loss)
    fast = 0
    for node in joint.module.graph.nodes:
        if node.op != "call_function" or "getitem" in str(node.target):
            continue
        bound = function_of(node)
        fast += bound.function is not node.target
        args, kwargs = pytree.tree_map(_real, (bound.args, dict(bound.kwargs)))
        with torch.no_grad(), _Sees() as watch:
            bound.function(*args, **kwargs)
        assert watch.seen[0] in (str(node.target), str(node.target).replace(".Scalar", ".Tensor")), node
    assert fast > len(joint.module.graph.nodes) / 4


def _real(argument: Any) -> Any:
    if not isinstance(argument, torch.fx.Node):
        return argument
    fake = argument.meta["val"]
    real = torch.zeros(fake.untyped_storage().nbytes(), dtype=torch.uint8).view(fake.dtype)
    return real.as_strided(fake.shape, fake.stride(), fake.storage_offset())


class _TwoUses(nn.Module):
    """One view of an activation, read by two operators."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(1, 2, 8))

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        flat = torch.sigmoid(x * self.scale).view(-1)
        return (flat * a).sum() + (flat * b).sum()


def test_a_view_is_cut_anew_where_its_base_has_moved() -> None:
    module = _TwoUses()
    x, a, b = torch.randn(4, 8), torch.randn(32), torch.randn(32)
    joint = capture_joint(module, (x, a, b))
    node = next(n.name for n in joint.module.graph.nodes if n.name.startswith("sigmoid") and n.op == "call_function")
    ops = [n for n in names(joint) if not n.startswith(("view", "detach", "expand"))]
    (first, second) = (n.name for n in joint.module.graph.nodes if "mul" in n.name and _reads_view(n))
    place = {op: {(node, 0): 0} for op in (node, first)} | {second: {(node, 0): 64}}
    turn = ops.index(second) + 3  # behind its sum and the addition of both
    calls = [Call(op, place.get(op, {})) for op in ops]
    calls.insert(turn, Call("turn"))
    moved = torch.full((4, 8), 3.0)
    code = emit(joint, calls, turn, lambda key, offset: moved if (key, offset) == ((node, 0), 64) else nothing(), {})
    values = {"scale": module.scale.detach(), "args[0]": x, "args[1]": a, "args[2]": b}
    (loss, *_), _ = code.forward([values[p.names[0]] for p in joint.primals])
    assert torch.equal(loss, (torch.sigmoid(x * module.scale).view(-1) * a).sum() + (moved.view(-1) * b).sum())


def _reads_view(node: Any) -> bool:
    return node.op == "call_function" and any("view" in getattr(a, "name", "") for a in node.args)
