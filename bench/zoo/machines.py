"""Machines and budgets for the gap table: published profiles, reduced to two or three tiers, sized for a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Link, Machine
from tensorstow.ir.profiles import load_machine
from tensorstow.planner.instance import Instance, make_instance

MIDDLE_SHARE = 0.5
"""Capacity of a middle tier, as a share of what is at home at the bottom."""
BALANCED_SHARE = 0.5
"""Share of the peak that a '~balanced' machine moves in the time it computes."""


def machine_for(specification: str, graph: Graph) -> Machine:
    """The machine of a specification for `graph`.

    'NAME/2': the profile's unit, its tier, and the fastest one below; 'NAME/3': also the fastest below that, the
    middle one holding `MIDDLE_SHARE` of the homed bytes of the graph. The first and the last tier are enlarged where
    they could not hold the graph twice: the budget is what limits the first. '~balanced' after it: all links faster or
    slower by one factor, so that moving `BALANCED_SHARE` of the peak takes as long as computing. Raises InputError.
    """
    name, tiers, variant = parse(specification)
    machine = _reduced(load_machine(name), tiers)
    fast, *below = (t.name for t in machine.tiers)
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    capacities = {t: max(machine.tier[t].capacity_nbytes, 2 * graph.nbytes) for t in (fast, below[-1])}
    if len(below) == 2:
        capacities[below[0]] = machine.tier[below[0]].reserve_nbytes + max(1, int(MIDDLE_SHARE * homed))
    machine = machine.with_capacity(capacities)
    return _balanced(machine, graph) if variant else machine


def parse(specification: str) -> tuple[str, int, str]:
    """Profile, number of tiers, variant."""
    name, _, variant = specification.partition("~")
    name, _, tiers = name.partition("/")
    if tiers not in ("2", "3") or variant not in ("", "balanced"):
        raise InputError(f"'{specification}' is no machine: write NAME/2 or NAME/3, and ~balanced if wanted")
    return name, int(tiers), variant


def _reduced(machine: Machine, tiers: int) -> Machine:
    """The first unit, its tier, and the fastest tiers below, one after another."""
    chain = [machine.units[0].tier]
    while len(chain) < tiers:
        below = [k for k in machine.links if k.target == chain[-1] and k.origin not in chain]
        if not below:
            raise InputError(f"machine '{machine.name}' has no {tiers} tiers below one another; ask for fewer")
        chain.append(max(below, key=lambda k: k.bytes_per_s).origin)
    return replace(
        machine,
        tiers=tuple(machine.tier[t] for t in chain),
        links=tuple(k for k in machine.links if k.origin in chain and k.target in chain),
        units=machine.units[:1],
    )


def _balanced(machine: Machine, graph: Graph) -> Machine:
    instance = make_instance(graph, machine)
    compute_s = sum(instance.durations_ns) / 1e9
    rate = BALANCED_SHARE * instance.peak_of_all() / compute_s
    fast, below = machine.tiers[0].name, machine.tiers[1].name
    factor = rate / machine.link[below, fast].bytes_per_s

    def scaled(link: Link) -> Link:
        return replace(link, bytes_per_s=factor * link.bytes_per_s)

    return replace(machine, links=tuple(scaled(k) for k in machine.links))


def budgets_of(instance: Instance, wanted: Iterable[str]) -> dict[str, int]:
    """Capacities of the unit's tier, in bytes, by budget: percentages of what a pass holds at most when nothing ever
    leaves, workspace included, and 'smallest', the largest working set. Percentages below the smallest are left out."""
    smallest = instance.smallest_budget
    whole = instance.peak_of_all() + instance.workspace_nbytes
    found: dict[str, int] = {}
    for name in wanted:
        if name == "smallest":
            found[name] = smallest
        elif (nbytes := int(float(name) / 100 * whole) + instance.fast.reserve_nbytes) >= smallest:
            found[f"{name}%"] = nbytes
    return found
