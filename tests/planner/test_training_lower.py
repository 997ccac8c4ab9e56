"""Training steps as graphs: every network's graph is sound, holds what its interpreter holds, and is the same again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from tensorstow.ir.codec import digest
from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import StorageKind
from tensorstow.planner.pytorch.lifetimes import storage_key
from tensorstow.planner.recompute_orders import Flow, is_random, recompute_order, repeatable
from tensorstow.planner.training import KEPT, StepLowered, live_nbytes, lower_joint, placed, with_updates
from tensorstow.planner.training.optimizer import optimizer_calls
from tensorstow.planner.validate import validate
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.joint_graph import Joint
from tensorstow.runtime.training.losses import loss_of
from tests.runtime.training_steps import Case, box, gpt, resnet

ROOT = Path(__file__).parents[2]


class UNet(nn.Module):
    """Down, across and up again, with a value that is read again much later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3, height, width] to a loss."""
        high = functional.silu(self.first(x))
        low = functional.silu(self.norm(self.middle(functional.max_pool2d(high, 2))))
        return self.last(torch.cat([self.up(low), high], 1)).square().mean()


class Unused(nn.Module):
    """May have a layer whose result nobody uses."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(64, 64), nn.Linear(64, 32) if unused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] to a loss."""
        if self.unused is not None:
            self.unused(x)
        return self.used(x).square().mean()


def unet() -> Case:
    torch.manual_seed(0)
    return Case(UNet(), (torch.randn(2, 3, 32, 32),))


def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = LlamaForCausalLM(config).train()
    return Case(module, (torch.randint(128, (2, 32)),), lambda result: cross_entropy(result.logits))


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=128, n_positions=64, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    torch.manual_seed(0)
    module = GPT2LMHeadModel(config).train()
    return Case(module, (torch.randint(128, (2, 32)),), lambda result: cross_entropy(result.logits))


def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    flat = logits.flatten(0, 1)
    return functional.cross_entropy(flat, torch.zeros(flat.shape[0], dtype=torch.int64))


CASES: dict[str, Callable[[], Case]] = {"gpt": gpt, "llama": llama, "gpt2": gpt2, "resnet": resnet, "unet": unet}


@cache
def captured(name: str) -> tuple[Case, Joint, StepLowered]:
    case = CASES[name]()
    joint = capture_joint(case.module, case.batch, {}, case.loss or loss_of)
    return case, joint, lower_joint(joint, name=name)


@cache
def updated(name: str) -> StepLowered:
    case, _, step = captured(name)
    return with_updates(step, optimizer_calls(torch.optim.AdamW(case.module.parameters()), case.module))


class Held(fx.Interpreter):
    """Runs a joint graph on tensors without values, and after each node counts the bytes of the storages that exist."""

    def __init__(self, joint: Joint) -> None:
        super().__init__(joint.module)
        self.joint = joint
        self.live: dict[str, int] = {}
        for last in self.user_to_last_uses.values():
            last[:] = [n for n in last if n.op != "placeholder"]  # who calls the step holds its arguments

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        values = [*self.env.values(), result]
        tensors = [t for v in values for t in (cast("Sequence[Any]", v) if isinstance(v, (tuple, list)) else (v,))]
        found = {storage_key(t): t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor)}
        self.live[n.name] = sum(s.nbytes() for s in found.values())
        if not n.users and n.op == "call_function":
            return None  # nobody asks for it
        return result


@pytest.mark.parametrize("name", CASES)
def test_every_graph_can_be_planned(name: str) -> None:
    _, joint, step = captured(name)
    machine = box(1 << 30)
    validate(step.graph, machine)
    validate(updated(name).graph, machine)
    lowered = placed(step, KEPT, key=joint.key)
    validate(lowered.graph, machine)
    assert {op.id for op in step.graph.operators} - {n.name for n in joint.module.graph.nodes} == {step.turn}


@pytest.mark.parametrize("name", CASES)
def test_a_step_holds_what_an_interpreter_of_its_graph_holds(name: str) -> None:
    _, joint, step = captured(name)
    meta = [p.meta["val"] for p in joint.module.graph.find_nodes(op="placeholder")]
    mode = meta[0].fake_mode
    counting = Held(joint)
    with mode:
        counting.run(*meta)
    tangents = sum(step.graph.storage[s].nbytes for s in step.graph.storage if s.startswith("tangents"))
    predicted = dict(zip((op.id for op in step.graph.operators), live_nbytes(step.graph), strict=True))
    both = [op for op in predicted if op in counting.live]
    assert len(both) > 20
    unused = sum(
        p.meta["val"].untyped_storage().nbytes() for p in joint.module.graph.find_nodes(op="placeholder")
    ) - sum(s.nbytes for s in step.graph.storages if s.homed or s.kind is StorageKind.INPUT)
    for op in both:
        assert abs(predicted[op] - counting.live[op]) <= tangents + unused, op


def test_ties_are_one_parameter() -> None:
    _, _, step = captured("gpt")
    names = [n for names in step.parameters.values() for n in names]
    assert len(names) == len(set(names))
    assert any({"tokens.weight", "head.weight"} <= set(names) for names in step.parameters.values())
    assert ("tokens.weight" in step.gradients) != ("head.weight" in step.gradients)


def test_random_operators_keep_their_order_and_are_never_called_again() -> None:
    _, _, step = captured("gpt2")
    drawn = [op for op in step.graph.operators if any(t.endswith(":random") for t in op.outputs)]
    assert len(drawn) >= 5
    assert all(is_random(op) for op in drawn)
    for before, op in pairwise(drawn):
        assert set(before.outputs) & set(op.inputs)
    assert not {op.id for op in drawn} & repeatable(step.graph)


def test_a_batch_norm_may_be_called_again_and_the_count_of_batches_not() -> None:
    _, _, step = captured("resnet")
    again = repeatable(step.graph)
    norms = [op.id for op in step.graph.operators if "batch_norm" in op.op_type and "backward" not in op.op_type]
    assert norms
    assert set(norms) <= again
    counts = [op for op in step.graph.operators if any("num_batches" in t for t in op.inputs)]
    flow = Flow(step.graph, tuple(o.id for o in step.graph.operators), (1,) * len(step.graph.operators))
    assert counts
    assert not any(flow.unchanged(op.id, len(flow.order)) for op in counts)


def test_nothing_is_called_again_with_a_parameter_that_was_updated() -> None:
    step = updated("gpt")
    lowered = placed(step, KEPT, key="")
    flow = Flow(lowered.graph, tuple(o.id for o in step.graph.operators), (1,) * len(step.graph.operators))
    table = next(u.operator for u in lowered.program.optimizer.updates if u.names[0] == "blocks.0.up.weight")  # type: ignore[union-attr]
    reads = next(
        o for o in step.graph.operators if o.op_type == "aten.addmm.default" and "blocks.0.up.bias" in o.inputs
    )
    assert flow.unchanged(reads.id, flow.step[table])
    assert not flow.unchanged(reads.id, flow.step[table] + 1)
    order = recompute_order(flow, flow.repeatable)
    last = max(i for i, op in enumerate(order) if op == reads.id)
    assert last < order.index(table)


def test_updates_stand_behind_all_that_reads_their_parameter() -> None:
    step = updated("llama")
    position = {op.id: i for i, op in enumerate(step.graph.operators)}
    assert step.optimizer is not None
    assert len(step.optimizer.updates) == len(step.parameters)
    for update in step.optimizer.updates:
        storage = next(s for s, names in step.parameters.items() if names == update.names)
        readers = [position[o.id] for o in step.graph.operators if storage in step.graph.reads(o)]
        assert max(readers) == position[update.operator]
        assert step.graph.storages_of([update.gradient])[0] in step.graph.reads(step.graph.operator[update.operator])


def test_shapes_that_depend_on_data_are_refused() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            return y[y > 0].sum()

    with pytest.raises(InputError):
        lower_joint(capture_joint(Chosen(), (torch.randn(4, 8),)), name="chosen")


def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "from tests.planner.test_training_lower import captured, updated\n"
        "from tensorstow.ir.codec import digest\n"
        "print(captured('gpt')[1].key, digest(updated('gpt').graph))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout.split()[-2:] == [captured("gpt")[1].key, digest(updated("gpt").graph)]


def test_a_parameter_that_is_never_used_is_not_placed_and_counts_as_memory() -> None:
    from tensorstow.modules import module_in_memory
    from tensorstow.planner.instance import make_instance
    from tensorstow.training import training_model

    models = [training_model(module_in_memory(Unused(unused), {}, (torch.randn(8, 64),))) for unused in (True, False)]
    placed_names = [n for names in models[0].step().parameters.values() for n in names]
    assert sorted(placed_names) == ["used.bias", "used.weight"]
    machine = box(1 << 30)
    workspaces = [
        make_instance(model.lower(machine, "training").graph, machine, mode="training").workspace_nbytes
        for model in models
    ]
    assert workspaces[0] - workspaces[1] == (64 * 32 + 32) * 4
