"""Machines without a way back: what no copy below holds cannot leave the fast tier there."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.errors import InfeasibleError
from ..ir.machine import Link
from ..ir.sizes import format_size
from .instance import Instance
from .items import ItemGap, round_up


def store_link(instance: Instance) -> Link | None:
    """The link that empties the fast tier, where there is one: without it only clean copies may leave."""
    return instance.machine.link.get((instance.fast.name, instance.home.name))


def removable_gaps(instance: Instance) -> tuple[ItemGap, ...]:
    """Gaps in which an item can leave at all: without a link back, those of what no operator ever writes."""
    if store_link(instance) is not None:
        return instance.gaps
    return tuple(g for g in instance.gaps if g.clean)


def bound_nbytes(instance: Instance, nbytes: Sequence[int] | None = None) -> tuple[int, ...]:
    """Bytes that each step holds whatever leaves: its operands and results, and what cannot leave in a gap around it.

    `nbytes` are those of each item; None: those that it takes when placed.
    """
    sizes = [item.nbytes for item in instance.items] if nbytes is None else nbytes
    held = [0] * instance.steps
    for item, size in zip(instance.items, sizes, strict=True):
        for t in item.touches:
            held[t] += size
    for gap in instance.gaps if store_link(instance) is None else ():
        for t in range(gap.start + 1, gap.end) if not gap.clean else ():
            held[t % instance.steps] += sizes[gap.item]
    return tuple(held)


def require_room(instance: Instance) -> None:
    """Raises InfeasibleError where what cannot leave is more than the fast tier holds, padding left out."""
    if store_link(instance) is not None:
        return
    held = bound_nbytes(instance, [instance.graph.storage[item.storage].nbytes for item in instance.items])
    needed = max(held, default=0)
    if needed <= instance.capacity_nbytes:
        return
    fast, worst = instance.fast, held.index(needed)
    padded = [round_up(item.nbytes, instance.alignment_of(i)) for i, item in enumerate(instance.items)]
    smallest = max(bound_nbytes(instance, padded)) + instance.workspace_nbytes + fast.reserve_nbytes
    raise InfeasibleError(
        f"machine '{instance.machine.name}' has no link from tier '{fast.name}' to '{instance.home.name}', so what "
        f"operators make or change stays: at op '{instance.order[worst]}' that is "
        f"{format_size(needed + instance.workspace_nbytes)} in tier '{fast.name}', which holds "
        f"{format_size(fast.usable_nbytes)}; give the machine such a link, or --tier {fast.name}={smallest}",
        smallest_nbytes=smallest,
    )
