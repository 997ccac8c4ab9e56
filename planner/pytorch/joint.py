"""One graph for two passes of a module: over a prompt, and over a new token.

Mostly both have the same parts. But an encoder runs for the prompt alone, and so does what makes the keys and values of
what was encoded; a convolution over a prompt is a product of single numbers for a token. Parts are the same where they
read the same weights. The joint graph has the parts of both, in an order of which either pass is a subsequence: such a
pass runs by a plan of the whole (`runtime/module/clock.py`), and what it leaves out takes no time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph, Operator, Tensor
from ...ir.program import Lookup
from .parts import ModuleLowered
from .views import OPAQUE

PROMPT = "#prompt"
"""Ends the name of a part of the prompt's pass whose own name a part of the token's has."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A part of the joint graph, as the token's pass has it and as the prompt's does; None where one does not."""

    id: str
    token: Operator | None
    prompt: Operator | None


def own_weights(decode: Graph, prefill: Graph) -> frozenset[str]:
    """Storages that parts of the prompt's pass read, and none of the token's."""
    ours, theirs = ({s for op in g.operators for s in _weights(g, op)} for g in (decode, prefill))
    return frozenset(theirs - ours)


def join(decode: ModuleLowered, prefill: ModuleLowered) -> ModuleLowered:
    """The joint graph, and the program of the pass that reads more weights, with the calls of both. Raises
    PlanMismatchError where they do not place the same parameters."""
    _require_same_parameters(decode, prefill)
    pairs = _pairs(decode.graph, prefill.graph)
    more = prefill if own_weights(decode.graph, prefill.graph) else decode
    calls: dict[str, str] = {}
    lookups: dict[str, Lookup] = {}
    for pair in pairs:
        for op, program in ((pair.prompt, prefill.program), (pair.token, decode.program)):
            if op is not None and op.id in program.calls:
                calls[pair.id] = program.calls[op.id]
            if op is not None and op.id in program.lookups:
                lookups[pair.id] = program.lookups[op.id]
    blobs = {**decode.program.blob, **prefill.program.blob, **more.program.blob}
    program = replace(more.program, blobs=tuple(blobs.values()), calls=calls, lookups=lookups)
    return ModuleLowered(joint_graph(decode.graph, prefill.graph), program)


def joint_graph(decode: Graph, prefill: Graph, *, cache_growth_nbytes: int = 0) -> Graph:
    """The graph to plan for both passes: each part with the workspace that it needs in the hungrier one.

    A part takes what it takes for a token. What only the prompt's pass has takes what it takes there, if the weights
    are its own: a prompt is read, and then a token made. Else it takes no time.

    `cache_growth_nbytes` are held beside it throughout: the cache at its full length less what the decode graph counts
    already as its inputs.
    """
    if cache_growth_nbytes < 0:
        raise InputError(f"the cache at its full length is {-cache_growth_nbytes} bytes smaller than the graph's own")
    pairs, own = _pairs(decode, prefill), own_weights(decode, prefill)
    operators: list[Operator] = []
    for pair in pairs:
        needed = 0 if pair.token is None else pair.token.workspace_nbytes + cache_growth_nbytes
        needed = max(needed, 0 if pair.prompt is None else pair.prompt.workspace_nbytes)
        if pair.token is not None:
            operators.append(replace(pair.token, workspace_nbytes=needed))
        elif pair.prompt is not None:
            free = own.isdisjoint(_weights(prefill, pair.prompt))
            outputs = pair.prompt.outputs if pair.id == pair.prompt.id else (f"{pair.id} is done",)
            one = replace(pair.prompt, id=pair.id, outputs=outputs, workspace_nbytes=needed)
            operators.append(replace(one, measured_ns=0) if free else one)
    if all(pair.token is not None for pair in pairs):
        return replace(decode, operators=tuple(operators))
    more = prefill if own else decode
    made = {t for g in (decode, prefill) for op in g.operators for t in op.outputs}
    done = (Tensor(t, OPAQUE, None, None, 0) for op in operators for t in op.outputs)
    placed = {t.id: t for g in (decode, prefill, more) for t in g.tensors if t.storage is not None}
    given = {name: more.tensor[name] for name in (*more.inputs, *more.outputs)}
    tensors = {**placed, **given, **{t.id: t for t in done}}
    return replace(
        more,
        storages=tuple({**decode.storage, **prefill.storage, **more.storage}.values()),
        tensors=tuple(tensors.values()),
        operators=chained(operators, made),
    )


def chained(operators: Iterable[Operator], made: Iterable[str]) -> tuple[Operator, ...]:
    """`operators`, each after the one before: of the tensors `made` by operators it takes those of that one."""
    others = frozenset(made)
    found: list[Operator] = []
    for op in operators:
        before = found[-1].outputs if found else ()
        found.append(replace(op, inputs=(*(t for t in op.inputs if t not in others), *before)))
    return tuple(found)


def calls_of(joint: Graph, one: Graph) -> dict[str, Operator]:
    """The parts of `one`, a pass that `joint` was made for, by the names that they have in it: each is the next one
    that reads the same weights, as in a run. Raises PlanMismatchError where there is none."""
    keys = _keys(joint)
    found: dict[str, Operator] = {}
    at = 0
    for op, key in zip(one.operators, _keys(one), strict=True):
        before = at
        while at < len(keys) and keys[at] != key:
            at += 1
        if at == len(keys):
            raise PlanMismatchError(
                f"the plan's {len(keys)} parts have none like '{op.id}' of '{one.name}' from part {before} on; plan "
                "that pass by itself"
            )
        found[joint.operators[at].id] = op
        at += 1
    return found


def _pairs(decode: Graph, prefill: Graph) -> list[_Pair]:
    """The parts of both passes in an order that either keeps."""
    ours, theirs, a, b = decode.operators, prefill.operators, _keys(decode), _keys(prefill)
    if a == b:
        return [_Pair(d.id, d, p) for d, p in zip(ours, theirs, strict=True)]
    taken = {op.id for op in ours}
    found: list[_Pair] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            found += [_Pair(d.id, d, p) for d, p in zip(ours[i:j], theirs[k:m], strict=True)]
            continue
        found += [_Pair(_free(p.id, taken), None, p) for p in theirs[k:m]]
        found += [_Pair(d.id, d, None) for d in ours[i:j]]
    return found


def _free(name: str, taken: set[str]) -> str:
    """`name`, or one made of it, that no part has; it is taken then."""
    while name in taken:
        name += PROMPT
    taken.add(name)
    return name


def _keys(graph: Graph) -> list[frozenset[str] | str]:
    """What makes parts the same: the weights that they read; of those that read none, the module that they are of."""
    return [_weights(graph, op) or op.id.partition("#")[0] for op in graph.operators]


def _weights(graph: Graph, op: Operator) -> frozenset[str]:
    return frozenset(s for s in graph.reads(op) if graph.storage[s].homed)


def _require_same_parameters(decode: ModuleLowered, prefill: ModuleLowered) -> None:
    """A buffer that a pass changes is none of its parameters, and stays in the module; the other may not place it."""
    ours, theirs = ({p.tensor: p for p in one.program.parameters} for one in (decode, prefill))
    for tensor in sorted(ours.keys() ^ theirs.keys()):
        name = {**ours, **theirs}[tensor].names[0]
        which = "a new token" if tensor in ours else "a prompt"
        raise PlanMismatchError(
            f"'{name}' of '{decode.graph.name}' is placed in the pass over {which} and changed in the other one; make "
            "a plan for each"
        )
