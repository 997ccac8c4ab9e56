"""Updates shared between two units: the CPU, in whose memory the states are, and an accelerator that computes faster
but has to be brought its states and to give them back.

Deep Optimizer States (Maurya et al., arXiv 2410.21316) cuts the parameters into subgroups of equal size and gives every
k-th one to the accelerator, where its states come while the CPU updates the others, and go while the next ones come:
the link carries both directions at once. k is such that neither side waits for the other. What follows is that balance,
worked out from the rates of both units and of the link; it is our own derivation of the model that the paper describes.

With subgroups of S parameters, in a row of k of them:
    the CPU updates k - 1 and makes their half-precision copies:        (k - 1) S (1 / cpu + 1 / cast)
    the link brings one's states, and carries the copies of the others: S s / link + (k - 1) S h / link
    the accelerator updates one while the next one's states travel:     S / accelerator
with s bytes of master parameter and states, h bytes of a half-precision copy for each parameter. The row takes the
longest of these three. Large k leaves all to the CPU, k = 1 all to the accelerator and the link.

No plan divides updates: all steps of a plan compute from one tier, that of the machine's first unit, and states come
there. `division` says of a planned step what the second unit would be worth, and the report of a plan prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor, inf, prod

from ...ir.errors import InputError
from ...ir.graph import Graph
from ...ir.machine import Machine, Unit
from ...ir.program import OptimizerProgram
from ..costs import duration_ns


@dataclass(frozen=True, slots=True)
class UpdateRates:
    """Parameters per second that each unit updates and that the CPU casts to half precision (`inf` where nothing is
    cast), and bytes per second of the link, one way. `state_nbytes` of each parameter travel to the accelerator and
    back; `copy_nbytes` of it go there when the CPU has updated it."""

    cpu_per_s: float
    accelerator_per_s: float
    link_bytes_per_s: float
    cast_per_s: float = inf
    state_nbytes: float = 12
    copy_nbytes: float = 2

    def __post_init__(self) -> None:
        rates = (self.cpu_per_s, self.accelerator_per_s, self.link_bytes_per_s, self.cast_per_s)
        if min(rates) <= 0 or min(self.state_nbytes, self.copy_nbytes) < 0:
            raise InputError(f"rates of updates must be above zero and bytes at least zero, got {self}")

    @property
    def cpu_s(self) -> float:
        """Seconds of one parameter that the CPU updates."""
        return 1 / self.cpu_per_s + 1 / self.cast_per_s

    @property
    def accelerator_s(self) -> float:
        """Seconds of one parameter that the accelerator updates."""
        return 1 / self.accelerator_per_s

    @property
    def fetch_s(self) -> float:
        """Seconds of the link, one way, for the states of a parameter."""
        return self.state_nbytes / self.link_bytes_per_s

    @property
    def copy_s(self) -> float:
        """Seconds of the link for the half-precision copy of a parameter."""
        return self.copy_nbytes / self.link_bytes_per_s


def row_s(rates: UpdateRates, k: int) -> float:
    """Seconds for each parameter of a subgroup, of a row of `k` subgroups of which the accelerator updates one.

    In a steady row CPU, link and accelerator are busy at once, so it takes as long as the busiest.
    """
    others = k - 1
    return max(others * rates.cpu_s, rates.fetch_s + others * rates.copy_s, rates.accelerator_s)


def update_s(rates: UpdateRates, parameters: int, k: int | None) -> float:
    """Seconds to update so many parameters with every `k`-th subgroup on the accelerator; None is the CPU alone, whose
    copies travel beside its work."""
    if k is None:
        return parameters * max(rates.cpu_s, rates.copy_s)
    return parameters * row_s(rates, k) / k


def stride(rates: UpdateRates, *, subgroups: int) -> int | None:
    """Every how many subgroups the accelerator should update one, of `subgroups`; None where the CPU alone is faster.

    The CPU's part of a row grows with k by `cpu_s`, the link's only by `copy_s`; seconds for each parameter fall with k
    as long as the CPU waits for the others, and rise behind the k at which it no longer does:
        k* = 1 + max(fetch / (cpu - copy), accelerator / cpu)    (cpu > copy; else the link binds and k = 1 or none)
    so that of all whole numbers the two around k* are enough.
    """
    around: set[int] = {1, subgroups}
    if rates.cpu_s > rates.copy_s:
        balance = 1 + max(rates.fetch_s / (rates.cpu_s - rates.copy_s), rates.accelerator_s / rates.cpu_s)
        around |= {floor(balance), ceil(balance)} if balance < subgroups + 1 else set()
    choices = sorted(k for k in around if 1 <= k <= subgroups)
    best = min(choices, key=lambda k: (update_s(rates, 1, k), k), default=None)
    if best is None or update_s(rates, 1, best) >= update_s(rates, 1, None):
        return None
    return best


def on_accelerator(rates: UpdateRates, *, subgroups: int) -> tuple[int, ...]:
    """The subgroups, counted from 0, that the accelerator updates: the last one of each row, so that the first rows'
    states are on their way while the CPU begins."""
    k = stride(rates, subgroups=subgroups)
    return () if k is None else tuple(range(k - 1, subgroups, k))


@dataclass(frozen=True, slots=True)
class Division:
    """Seconds of all updates of a step, `subgroups` of them, whose states begin and end in the tier of unit `cpu`: on
    unit `accelerator` alone, on the CPU alone, and with every `stride`-th on the accelerator (None: with none)."""

    accelerator: str
    cpu: str
    subgroups: int
    stride: int | None
    accelerator_s: float
    cpu_s: float
    divided_s: float


def division(graph: Graph, optimizer: OptimizerProgram, machine: Machine) -> Division | None:
    """What the model says of the updates of a planned step, each a subgroup, by the rates of `machine`.

    None where the machine has no second unit that computes from another tier with links both ways, and where all states
    stay with the first unit: then nothing is to be divided. A parameter is copied to the accelerator in its own type.
    """
    unit = machine.units[0]
    cpu = next((u for u in machine.units[1:] if u.tier != unit.tier and _links(machine, unit, u)), None)
    tensors = (graph.tensor[t] for u in optimizer.updates for t in u.states.values())
    states = [t for t in tensors if t.nbytes]
    if cpu is None or not states:
        return None
    elements = sum(
        u.elements[1] - u.elements[0] if u.elements else prod(graph.tensor[u.gradient].shape or ())
        for u in optimizer.updates
    )
    on_cpu, on_unit = (_seconds(graph, optimizer, chosen) for chosen in (cpu, unit))
    rates = UpdateRates(
        cpu_per_s=elements / on_cpu,
        accelerator_per_s=elements / on_unit,
        link_bytes_per_s=min(_links(machine, unit, cpu)),
        state_nbytes=sum(t.nbytes for t in states) / elements,
        copy_nbytes=states[0].nbytes / prod(states[0].shape or ()),
    )
    subgroups = len(optimizer.updates)
    best = stride(rates, subgroups=subgroups)
    seconds = (update_s(rates, elements, k) for k in (1, None, best))
    return Division(unit.name, cpu.name, subgroups, best, *seconds)


def _links(machine: Machine, a: Unit, b: Unit) -> tuple[float, ...]:
    """Bytes per second both ways between the tiers of two units; nothing where one way is missing."""
    found = [machine.link.get(ends) for ends in ((a.tier, b.tier), (b.tier, a.tier))]
    rates = tuple(link.bytes_per_s for link in found if link is not None)
    return rates if len(rates) == len(found) else ()


def _seconds(graph: Graph, optimizer: OptimizerProgram, unit: Unit) -> float:
    """Of all updates on `unit`, with what they touch at hand; by its rates, since times were measured on one unit."""
    operators = (replace(graph.operator[u.operator], measured_ns=None) for u in optimizer.updates)
    return sum(duration_ns(op, unit) for op in operators) / 1e9
