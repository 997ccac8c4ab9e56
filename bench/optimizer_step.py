"""The step that the optimizer's bench plans: parameters of a GPT, the work of a backward, the machine as it is."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from tensorstow.ir.files import PlanFile
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.program import NodeOutput
from tensorstow.planner.build import plan_graph
from tensorstow.planner.pytorch.lowered import OpLowered
from tensorstow.planner.training import STATES, StepLowered, TrainingLowered, placed, with_updates
from tensorstow.planner.training.optimizer import optimizer_calls, split_updates, with_update_times
from tensorstow.runtime.passes import PlanMemory
from tensorstow.runtime.training.optimizer import PlannedOptimizer
from tensorstow.runtime.training.state_store import StateStore
from tensorstow.runtime.training.update_calls import update_ns

from .common import MIB

OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}


class Parameters(nn.Module):
    """The matrices of a GPT: embedding, and four of each block, in the order in which a backward reaches them last."""

    def __init__(self, blocks: int, width: int, vocabulary: int) -> None:
        super().__init__()
        shapes = [(vocabulary, width)] + [s for _ in range(blocks) for s in _block(width)]
        draws = torch.Generator().manual_seed(0)
        self.held = nn.ParameterList(torch.randn(s, generator=draws).mul_(0.02) for s in shapes)

    def backward_order(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters; the last layer first."""
        yield from reversed(list(self.named_parameters()))


def _block(width: int) -> tuple[tuple[int, int], ...]:
    return (3 * width, width), (width, width), (4 * width, width), (width, 4 * width)


class Work:
    """Gradients by matrix products over `tokens` rows."""

    def __init__(self, tokens: int, widest: int) -> None:
        draws = torch.Generator().manual_seed(1)
        self.rows = torch.randn(tokens, widest, generator=draws)

    def gradient(self, parameter: nn.Parameter, step: int, out: torch.Tensor) -> torch.Tensor:
        """That of `parameter` in `step`, in `out`, after the products of the layer's forward and backward."""
        outputs, inputs = parameter.shape
        weight = parameter.detach()
        x, g = self.rows[:, :inputs], self.rows[:, -outputs:] if outputs <= self.rows.shape[1] else None
        if g is None:  # the embedding as the head: a slice of the vocabulary at a time
            for lo in range(0, outputs, self.rows.shape[1]):
                part = out[lo : lo + self.rows.shape[1]]
                self._products(x, self.rows[:, : part.shape[0]], weight[lo : lo + part.shape[0]], step, part)
            return out
        self._products(x, g, weight, step, out)
        return out

    def _products(self, x: torch.Tensor, g: torch.Tensor, weight: torch.Tensor, step: int, out: torch.Tensor) -> None:
        torch.mm(x, weight.t())
        torch.mm(g, weight)
        torch.mm(g.t(), x, out=out)
        out.mul_(1e-3 * (step + 1))


def step_of(module: Parameters, optimizer: Any, tokens: int, flops_per_s: float) -> StepLowered:
    """The step as a graph: for each parameter its gradient, then its update."""
    storages, tensors, operators = list[Storage](), list[Tensor](), [Operator("turn", "Turn", (), ())]
    traced, values = fx.Graph(), dict[str, NodeOutput]()
    for name, p in module.backward_order():
        gradient, nbytes = f"grad {name}", p.numel() * 4
        storages += [Storage(name, nbytes, StorageKind.WEIGHT), Storage(gradient, nbytes, StorageKind.GRADIENT)]
        tensors += [Tensor(s, "float32", tuple(p.shape), s, nbytes) for s in (name, gradient)]
        flops = 6 * p.numel() * tokens
        nanoseconds = round(1e9 * flops / flops_per_s)
        operators.append(
            Operator(gradient, "Gradient", (name,), (gradient,), "matmul", flops=flops, measured_ns=nanoseconds)
        )
        node = traced.placeholder(f"g{len(values)}")
        node.meta["val"] = torch.empty(p.shape, device="meta")
        values[gradient] = NodeOutput(node.name, 0)
    graph = Graph("optimizer", tuple(storages), tuple(tensors), tuple(operators), (), ())
    names = {name: (name,) for name, _ in module.named_parameters()}
    step = StepLowered(
        operators=OpLowered(graph, {}, {}, {}, frozenset(), traced, frozenset()),
        turn="turn",
        values=values,
        parameters=names,
        gradients={name: f"grad {name}" for name in names},
        fixed=frozenset(),
    )
    return with_updates(step, optimizer_calls(optimizer, module))


def measured_machine(dram_nbytes: int, folder: Path) -> tuple[Machine, float]:
    """This box as far as it matters here, and its matrix products a second."""
    rows = torch.randn(1024, 1024)
    flops_per_s = 2 * 1024**3 / _best(lambda: torch.mm(rows, rows))
    block = memoryview(bytearray(64 * MIB))
    with StateStore({"x": len(block)}, folder) as store:
        write = len(block) / _best(lambda: store.write("x", 0, block, chunk=4 * MIB))
        read = len(block) / _best(lambda: store.read("x", 0, block, chunk=4 * MIB))
    machine = Machine(
        "here",
        (Tier("dram", TierKind.DRAM, dram_nbytes), Tier("ssd", TierKind.SSD, 1 << 50, alignment=4096)),
        (Link("ssd", "dram", read, 0.0, 4 * MIB), Link("dram", "ssd", write, 0.0, 4 * MIB)),
        (Unit("cpu", "dram", (("float32", flops_per_s),), 5e9),),
    )
    return machine, flops_per_s


def _best(call: Callable[[], object]) -> float:
    taken: list[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def plan_step(module: Parameters, optimizer: Any, given: argparse.Namespace, folder: Path) -> tuple[Any, PlanFile]:
    """The step lowered and planned in the memory that the largest gradient and a window take."""
    largest = max(p.numel() * 4 for p in module.parameters())
    machine, flops_per_s = measured_machine(1 << 50, folder)
    step = step_of(module, optimizer, given.tokens, flops_per_s)
    step = with_update_times(split_updates(step, given.piece_mib * MIB), update_ns)
    lowered: TrainingLowered = placed(step, STATES, key="none")
    workspace = max(op.workspace_nbytes for op in lowered.graph.operators)
    machine = machine.with_capacity({"dram": workspace + largest + given.window_mib * MIB})
    plan = plan_graph(lowered.graph, machine, mode="training", strategy=given.strategy, time_limit_s=given.time_limit)
    return lowered, PlanFile(plan, lowered.graph, machine, None, None, 0, training=lowered.program)


class Planned:
    """The planned step in a loop of its own."""

    def __init__(self, module: Parameters, given: argparse.Namespace, work: Work, folder: Path) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), **OPTIONS)
        lowered, self.file = plan_step(module, optimizer, given, folder)
        self.plan, self.work, self.turn = self.file.plan, work, 0
        self.optimizer = PlannedOptimizer(optimizer, module, self.plan, lowered.graph, lowered.program)
        self.memory = PlanMemory(self.plan, lowered.graph, self.file.machine, "dram", self.optimizer.open_store(folder))
        self.memory.open(folder)
        self.memory.restart()
        self.optimizer.bind(self.memory)
        named = dict(module.named_parameters())
        self.calls = [self._call(t, s.op, named) for t, s in enumerate(self.plan.steps)]

    def _call(self, t: int, op: str, named: dict[str, nn.Parameter]) -> Callable[[int], None]:
        """What step t does, given the number of the training step."""
        if op == "turn":
            return lambda step: None
        graph = self.file.graph
        name = op.split()[-1] if op.startswith("grad") else op.removeprefix("update:").split("[")[0]
        tensor, p = graph.tensor[f"grad {name}"], named[name]
        place = self.memory.arena.view(self.memory.addresses.of_tensor(tensor, t), tensor.nbytes)
        gradient = torch.frombuffer(place, dtype=torch.float32).view(p.shape)
        if op.startswith("grad"):
            return lambda step: (self.work.gradient(p, step, gradient), None)[1]
        return lambda step: self.optimizer.update(op, gradient)

    def step(self, number: int) -> None:
        """One training step."""
        self.optimizer.begin()
        engine, total = self.memory.engine, len(self.calls)
        for t, call in enumerate(self.calls):
            engine.arrive(self.turn * total + t)
            self._wait(t)
            call(number)
        self._wait(total)
        engine.arrive((self.turn + 1) * total)
        self.turn += 1
        self.optimizer.end()

    def _wait(self, instant: int) -> None:
        for lane, count, jobs in self.memory.waits[instant]:
            self.memory.engine.wait(lane, count + self.turn * jobs)

    def controls(self) -> dict[str, float]:
        """Seconds of a step with nothing moved, and of its transfers alone. The states are lost."""
        self.memory.engine.settle()
        self.optimizer.begin()
        begin = time.perf_counter()
        for call in self.calls:
            call(0)
        compute_s = time.perf_counter() - begin
        return {"compute_s": compute_s, "io_s": self.memory.transfers_alone()}
