"""The network that PyTorch's min-cut partitioner cuts, on our operators: what may be made again, and what to save.

Source: torch/_functorch/partitioners.py of PyTorch 2.13, `solve_min_cut` and `get_default_op_list`. A forward operator
is *banned* when it must not be made again: it is not on the list of cheap ones, is used by something in the backward
pass that no kernel can be fused with, comes late in a long chain of fusible ones, is used far apart, or makes far less
than it reads. Saving a value costs its bytes, more the farther it is from the backward pass, twice where all its users
could be fused with it. The cheapest cut between what is given or banned and what the backward pass reads is saved.

Adapted: a view is no operator here, so that distances count operators alone, and what PyTorch says of views needs no
rule. The forward pass ends at the operator that makes the tangents where there is one, else at the turn of
`recompute_orders`. Its list of pointwise operators is a tag of ATen's; here it is the cost class. Operators of other
sources than ATen go by the cost class too. Parameters that the graph does not hold count as given, as in PyTorch. What
random operators make is saved always: PyTorch replays their generators, no plan of ours runs one again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property

from ...ir.graph import Operator
from ...ir.operators import is_random, is_turn
from ...solvers.residency.recompute_cut import INFINITE, Network, minimum_cut, reaching
from ..recompute_orders import Flow

_LISTED = """
    abs acos acosh add addcmul alias amax any arange argmax as_strided asin asinh atan atan2 atanh bitwise_not
    broadcast_in_dim broadcast_tensors ceil clamp clone convert_element_type cos cosh div empty empty_like eq erf erfc
    exp expand expm1 fmod frac floor full full_like gather ge gelu gelu_backward gt index iota isinf le lerp lgamma
    lift_fresh_copy log log10 log1p log2 lt max maximum mean min mul ne neg new_zeros ones permute pow
    prepare_softmax_online reciprocal relu remainder reshape round rsqrt rsub scalar_tensor select sigmoid silu sin sinh
    slice softplus split sqrt squeeze std sub sum sum_to_size t tan tanh threshold threshold_backward to triu trunc
    type_as unsqueeze var var_mean view where zeros zeros_like _grad_sum_to_size _to_copy _unsafe_view
    __and__ __or__ __xor__ __lshift__ __rshift__ _low_memory_max_pool_offsets_to_indices
"""
LISTED = frozenset(_LISTED.split())
"""`default_recomputable_ops` of ATen and prims; pointwise operators come to these."""
_INTENSIVE = """
    mm convolution convolution_backward bmm addmm _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _flash_attention_forward _efficient_attention_forward upsample_bilinear2d
    _scaled_mm
"""
INTENSIVE = frozenset(_INTENSIVE.split())
"""`compute_intensive_ops`."""
INTENSIVE_CLASSES = ("matmul", "matvec", "gemm", "conv", "attention")
"""What the cost classes of such operators begin with where an operator is none of ATen's."""
POINTWISE_CLASSES = ("elementwise", "transcendental", "scalar_math")
CHEAP_CLASSES = (*POINTWISE_CLASSES, "copy", "gather", "reduce", "transpose")
MAY_FUSE_INTO = frozenset({"cat", "Concat"})
"""What anything can be fused into, though it can be fused into nothing (`is_fusible`)."""
LONG_CHAIN, MANY_TIMES_SMALLER, FAR, NEARER = 100, 4, 100, 1.1
"""Fusible operators in a row that are too many; how much smaller a reduction's result is; the farthest distance from
the backward pass that counts, and by how much each operator of it raises the price of saving."""
NEVER = 1 << 30


@dataclass(frozen=True, slots=True)
class Bans:
    """Which heuristics ban an operator from being made again (`MinCutOptions`)."""

    far_apart: bool = True
    long_chains: bool = True
    materialized: bool = True
    unlisted: bool = True
    reductions: bool = True


def packet(op: Operator) -> str:
    """ATen's name of an operator without namespace and overload; '' for one of another source."""
    words = op.op_type.split(".")
    return words[1] if len(words) > 1 and words[0] in ("aten", "prims") else ""


def is_listed(op: Operator) -> bool:
    """Whether PyTorch thinks it cheap to make again (`is_recomputable`)."""
    name = packet(op)
    if is_random(op) or is_turn(op) or is_intensive(op):
        return False
    return name in LISTED or op.cost_class.startswith(POINTWISE_CLASSES if name else CHEAP_CLASSES)


def is_intensive(op: Operator) -> bool:
    """Whether PyTorch thinks it dear to make again (`is_compute_intensive`)."""
    name = packet(op)
    return name in INTENSIVE if name else op.cost_class.lower().startswith(INTENSIVE_CLASSES)


def is_fusible(maker: Operator, user: Operator) -> bool:
    """Whether one kernel may be made of both."""
    if (packet(user) or user.op_type) in MAY_FUSE_INTO:
        return True
    return all(is_listed(op) or is_random(op) for op in (maker, user))


@dataclass(frozen=True)
class Partition:
    """A flow as the partitioner sees it: `forward` are the operators before the tangents."""

    flow: Flow

    @cached_property
    def forward(self) -> tuple[str, ...]:
        """Operators before the one that makes the tangents; without such a one, before the turn."""
        operator = self.flow.graph.operator
        turns = (t for t, op in enumerate(self.flow.order) if is_turn(operator[op]))
        return self.flow.order[: next(turns, self.flow.turn)]

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Storages that the forward operators touch, in the order of first mention."""
        flow = self.flow
        return tuple(dict.fromkeys(s for op in self.forward for s in flow.reads[op] + flow.writes[op]))

    @cached_property
    def maker(self) -> dict[str, str]:
        """The forward operator that makes a value; none for what is given or at home."""
        found: dict[str, str] = {}
        for op in self.forward:
            for s in self.flow.writes[op]:
                if not self.flow.graph.storage[s].homed:
                    found.setdefault(s, op)
        return found

    @cached_property
    def users(self) -> dict[str, tuple[str, ...]]:
        """Operators of both passes that read a value."""
        found: dict[str, list[str]] = {}
        for op in self.flow.order:
            for s in self.flow.reads[op]:
                found.setdefault(s, []).append(op)
        return {s: tuple(ops) for s, ops in found.items()}

    def users_of(self, op: str) -> tuple[str, ...]:
        """Operators that read what `op` makes, in order. What read the same bytes before `op` changed them is none."""
        step = self.flow.step
        found = dict.fromkeys(u for s in self.flow.writes[op] for u in self.users.get(s, ()) if step[u] > step[op])
        return tuple(sorted(found, key=lambda u: step[u]))

    @cached_property
    def backward(self) -> frozenset[str]:
        """All other operators."""
        return frozenset(self.flow.order[len(self.forward) :])

    @cached_property
    def distance(self) -> dict[str, int]:
        """Operators from each forward one to the backward pass, `NEVER` where it does not lead there."""
        found = dict.fromkeys(self.backward, 0)
        for op in reversed(self.forward):
            found[op] = min((found[u] + 1 for u in self.users_of(op)), default=NEVER)
        return found

    def nbytes(self, op: str) -> int:
        """Bytes that it makes."""
        return sum(self.flow.graph.storage[s].nbytes for s in self.flow.writes[op])

    def counted_flops(self, op: str) -> int:
        """Operations that PyTorch's counter counts, those of products, convolutions and attention; else 1."""
        own = self.flow.graph.operator[op]
        return max(1, own.flops if own.cost_class.lower().startswith(INTENSIVE_CLASSES) else 0)

    def fusible(self, maker: str, user: str) -> bool:
        """`is_fusible` by ids."""
        operator = self.flow.graph.operator
        return is_fusible(operator[maker], operator[user])

    def banned(self, bans: Bans) -> frozenset[str]:
        """Forward operators that must not be made again."""
        found = {op for op in self.forward if op not in self.flow.repeatable or self._is_banned(op, bans)}
        if bans.far_apart:
            found |= set(self._far_apart())
        if bans.long_chains:
            found |= set(self._long_chains(found))
        return frozenset(found)

    def _is_banned(self, op: str, bans: Bans) -> bool:
        own = self.flow.graph.operator[op]
        if not is_listed(own) if bans.unlisted else is_intensive(own):
            return True
        behind = [u for u in self.users_of(op) if u in self.backward]
        if bans.materialized and any(not self.fusible(op, u) for u in behind):
            return True
        read = sum(self.flow.graph.storage[s].nbytes for s in self.flow.reads[op])
        return bans.reductions and self.nbytes(op) * MANY_TIMES_SMALLER < read

    def _far_apart(self) -> Iterator[str]:
        """Users of a value behind the first operator that ends all fusion of its users."""
        before = {op: n for n, op in enumerate(self.forward)}
        for op in self.forward:
            users = [u for u in self.users_of(op) if u in before]
            if len(users) > 1:
                first = self._first_unfusible(users, before[users[-1]], before)
                yield from (u for u in users if before[u] > first and self.fusible(op, u))

    def _first_unfusible(self, users: list[str], last: int, before: dict[str, int]) -> int:
        """The place of the first operator reached from `users` that cannot be fused, up to `last`."""
        heap = [(before[u], True) for u in users]
        seen = set(heap)
        heapq.heapify(heap)
        while heap:
            n, fused = heapq.heappop(heap)
            if not fused:
                return n
            for u in self.users_of(self.forward[n]):
                entry = (before.get(u, NEVER), u in before and self.fusible(self.forward[n], u))
                if entry[0] <= last and entry not in seen:
                    seen.add(entry)
                    heapq.heappush(heap, entry)
        return last

    def _long_chains(self, banned: Set[str]) -> Iterator[str]:
        """Operators at which a chain of fusible ones has become too long."""
        before = {op: n for n, op in enumerate(self.forward)}
        visited: set[int] = set()
        for start in range(len(self.forward)):
            heap = [start]
            while heap:
                n = heapq.heappop(heap)
                if n in visited:
                    continue
                visited.add(n)
                if n > start + LONG_CHAIN and not heap:
                    yield self.forward[n]
                    break
                for u in self.users_of(self.forward[n]):
                    if u in before and u not in banned and self.fusible(self.forward[n], u):
                        heapq.heappush(heap, before[u])

    def saved(self, banned: Set[str]) -> frozenset[str]:
        """The values of the cheapest cut: what is kept for the backward pass when all else is made again."""
        return _Cut(self, banned).saved()

    def price(self, value: str) -> int:
        """What saving a value costs (`get_node_weight`); nothing for what lies in the home tier anyhow."""
        storage = self.flow.graph.storage[value]
        maker = self.maker.get(value)
        if maker is None:
            return 0 if storage.homed else storage.nbytes
        users = [u for u in self.users.get(value, ()) if u != maker]
        raised = int(storage.nbytes * NEARER ** max(1, min(self.distance[maker], FAR)))
        return raised if any(not self.fusible(maker, u) for u in users) else 2 * raised


@dataclass
class _Cut:
    """Nodes: operators, then for each value the two ends of the edge that is its price, the source and the sink."""

    partition: Partition
    banned: Set[str]
    network: Network = field(init=False)

    def saved(self) -> frozenset[str]:
        part, flow = self.partition, self.partition.flow
        number = {op: n for n, op in enumerate(part.forward)}
        count = len(number)
        source, sink = count + 2 * len(part.values), count + 2 * len(part.values) + 1
        network = self.network = Network(sink + 1)
        for op, n in number.items():
            if op in self.banned:
                network.add(source, n, INFINITE)
        ends: dict[str, tuple[int, int]] = {}
        for k, value in enumerate(part.values):
            before, behind = ends[value] = count + 2 * k, count + 2 * k + 1
            maker = part.maker.get(value)
            network.add(source if maker is None else number[maker], before, INFINITE)
            network.add(before, behind, part.price(value))
            if any(u in part.backward for u in part.users.get(value, ())):
                network.add(behind, sink, INFINITE)
        for op, n in number.items():
            for s in flow.reads[op]:
                if s not in flow.writes[op]:
                    network.add(ends[s][1], n, INFINITE)
        minimum_cut(network, source, sink)
        beyond = reaching(network, sink)
        return frozenset(v for v, (before, behind) in ends.items() if before not in beyond and behind in beyond)


def again(partition: Partition, saved: Set[str]) -> frozenset[str]:
    """Forward operators that the backward pass calls again when `saved` is what it finds."""
    flow = partition.flow
    found: set[str] = set()
    pending = [s for s in partition.values if any(u in partition.backward for u in partition.users.get(s, ()))]
    while pending:
        value = pending.pop()
        maker = partition.maker.get(value)
        if value in saved or maker is None or maker in found or maker not in flow.repeatable:
            continue
        found.add(maker)
        pending += flow.reads[maker]
    return frozenset(found)
