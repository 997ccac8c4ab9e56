"""Tests of planner/pytorch/experts*.py: which layers have experts, and how many of them a budget keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InfeasibleError, InputError
from tensorstow.ir.graph import StorageKind
from tensorstow.planner.instance import make_instance
from tensorstow.planner.pytorch import ModuleLowered, lower_module, parts
from tensorstow.planner.pytorch.experts import (
    Routed,
    choose_caching,
    find_fused,
    leave_experts,
    placed_layers,
    slot_nbytes,
    smallest_caching,
    without_experts,
)
from tensorstow.planner.pytorch.experts_list import find_lists, with_lists, without_choices

from ..graphs import machine
from ..runtime.test_module_experts import FAMILIES, build

ROUTING = {"mixtral": (6, 2), "olmoe": (12, 3), "qwen3": (10, 3), "gptoss": (6, 2)}


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Routing(nn.Module):
    """A router and a list of experts, of which each row has two."""

    def __init__(self, experts: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(64, experts, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates, ids = torch.topk(torch.softmax(self.router(x), -1), 2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(ids == number)
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]) * gates[rows, place, None])
        return out


class Net(nn.Module):
    """A stack of layers, which is a list too, but not one of experts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Routing() for _ in range(2))
        self.head = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def lowered_parts(model: Any, tokens: int = 1) -> tuple[ModuleLowered, tuple[Routed, ...]]:
    lowered = lower_module(model, (), {"input_ids": torch.ones(1, tokens, dtype=torch.long)}, name="moe")
    found = parts(lowered, machine(1 << 30).units[0])
    return found, placed_layers(found, find_fused(model, lowered))


def sizes(found: ModuleLowered) -> tuple[int, int]:
    """Bytes with everything resident, and of the hungriest part, workspace included."""
    posed = make_instance(found.graph, machine(1 << 40))
    held = sum(-(-i.nbytes // 4096) * 4096 for i in posed.items)
    return held + posed.workspace_nbytes, posed.smallest_budget


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_transformers_and_what_tokens_ask_of_them(name: str) -> None:
    _, layers = lowered_parts(build(name), tokens=4)
    experts, top_k = ROUTING[name]
    assert [(r.layer.experts, r.layer.top_k, r.tokens) for r in layers] == [(experts, top_k, 4)] * 3
    assert layers[0].layer.module == "model.layers.0.mlp.experts"
    assert layers[0].layer.parameters == ("gate_up_proj", "down_proj")
    assert layers[0].asked == min(experts, 4 * top_k)
    assert top_k < layers[0].expected < min(experts, 4 * top_k)


def test_no_model_without_experts_has_any() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert find_fused(net, lower_module(net, (torch.ones(1, 8),), {}, name="net")) == ()
    assert find_lists(net, (torch.ones(1, 8),), {}) == ()


def test_the_other_weights_have_their_room_first() -> None:
    found, layers = lowered_parts(build("mixtral", vocabulary=4000))
    every = sum(slot_nbytes(found, r.layer) for r in layers)
    whole, _ = sizes(found)
    resident, least = sizes(without_experts(found, [r.layer for r in layers]))
    assert choose_caching(found, layers, machine(whole)) is None
    for slots in (3, 2):
        chosen = choose_caching(found, layers, machine(resident + slots * every))
        assert chosen is not None
        assert (chosen.slots, chosen.shared, chosen.hit_rate) == (slots, False, pytest.approx(slots / 6))
        after = leave_experts(found, chosen)
        assert sizes(after)[0] == resident + slots * every
        kinds = {s.id: s.kind for s in after.graph.storages}
        assert sum(k is StorageKind.EXPERT for k in kinds.values()) == 6
        assert not any(kinds[s] is StorageKind.EXPERT for o in after.graph.operators for s in after.graph.reads(o))
    tight = choose_caching(found, layers, machine(resident + every))  # what a token asks for, and less of the others
    assert tight is not None
    assert (tight.slots, tight.shared) == (2, False)
    one = slot_nbytes(found, layers[0].layer)
    last = choose_caching(found, layers, machine(least + one))
    assert last is not None
    assert (last.slots, last.shared) == (1, True)
    smallest = smallest_caching(layers)
    assert smallest is not None
    assert sizes(leave_experts(found, smallest))[1] == least + one
    with pytest.raises(InfeasibleError) as refused:
        choose_caching(found, layers, machine(least + one - 1))
    assert refused.value.smallest_nbytes == least + one


def test_what_reads_nearly_all_experts_is_planned_as_a_whole() -> None:
    found, layers = lowered_parts(build("mixtral"), tokens=48)
    whole, least = sizes(found)
    budget = machine((whole + least) // 2)
    assert choose_caching(found, layers, budget) is None
    one, same = lowered_parts(build("mixtral"))
    whole, least = sizes(one)
    assert choose_caching(one, same, machine((whole + least) // 2)) is not None


def test_lists_are_known_by_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    net, x = Net().eval(), torch.randn(6, 64)
    before = {n: p.clone() for n, p in net.named_parameters()}
    with pytest.raises(InputError):
        lower_module(net, (x,), {}, name="net")
    assert "def forward" not in capsys.readouterr().err  # torch.export prints what it has traced so far
    lists = find_lists(net, (x,), {})
    assert [(r.routed.layer.module, r.routed.layer.top_k, r.routed.tokens) for r in lists] == [
        ("layers.0.experts", 2, 6),
        ("layers.1.experts", 2, 6),
    ]
    assert lists[0].made_nbytes > x.nbytes
    with without_choices(net, lists):
        lowered = lower_module(net, (x,), {}, name="net")
    assert all("forward" not in part.__dict__ for part in net.modules())
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    found, layers = with_lists(parts(lowered, machine(1 << 30).units[0]), lists)
    assert {"up.weight", "down.weight"} <= set(layers[0].layer.parameters)
    plain = choose_caching(found, layers, machine(1 << 30))
    assert plain is not None
    assert plain.slots == 8  # all of them, where they fit: no operator of the graph reads them
    read = {s for o in found.graph.operators for s in found.graph.reads(o)}
    assert not any("experts" in s for s in read)


def test_a_list_on_meta_cannot_be_watched() -> None:
    with torch.device("meta"):
        net = Net()
    assert find_lists(net, (torch.empty(6, 64, device="meta"),), {}) == ()
