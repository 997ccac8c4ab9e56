"""Which tiers of a machine hold what the compute tier does not."""

from __future__ import annotations

from ..ir.errors import InputError
from ..ir.graph import Graph
from ..ir.machine import Link, Machine, Tier
from ..ir.sizes import format_size


def chain_below(graph: Graph, machine: Machine, fast: Tier) -> tuple[Tier, ...]:
    """The tiers below `fast`, each reached by the fastest link from the one above, down to the first that holds all.

    Where that chain ends too early, the fastest tier linked to `fast` itself that holds all.
    """
    needed = sum(s.nbytes for s in graph.storages if s.homed)
    chain = [fast]
    while below := [k for k in _links_into(machine, chain[-1]) if machine.tier[k.origin] not in chain]:
        chain.append(machine.tier[below[0].origin])
        if chain[-1].usable_nbytes >= needed:
            return tuple(chain[1:])
    linked = [machine.tier[k.origin] for k in _links_into(machine, fast)]
    for tier in linked:
        if tier.usable_nbytes >= needed:
            return (tier,)
    known = {t.name: format_size(t.usable_nbytes) for t in (*linked, *chain[1:])}
    raise InputError(
        f"machine '{machine.name}': the weights take {format_size(needed)}, no tier linked to '{fast.name}' holds "
        f"them ({', '.join(f'{n}: {v}' for n, v in known.items()) or 'there is none'}); give one more: --tier NAME=SIZE"
    )


def _links_into(machine: Machine, tier: Tier) -> list[Link]:
    """Links into a tier, the fastest first."""
    return sorted((k for k in machine.links if k.target == tier.name), key=lambda k: -k.bytes_per_s)
