"""Bytes that no schedule avoids: of a graph in every order of its operators, and of one operator that is tiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes that operators (by index) read and write.

    `below`: a copy lies below when a pass begins. `given`: made before the first operator; `kept`: needed after the
    last one. Both are then in the fast memory.
    """

    nbytes: int
    writers: frozenset[int]
    readers: frozenset[int]
    below: bool = False
    given: bool = False
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """Operators 0..n-1 of a pass that repeats for ever, and values. `successors`[i]: who must come after i.

    Raises:
        ValueError: an operator that does not exist, a negative size.
    """

    successors: tuple[tuple[int, ...], ...]
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        count = len(self.successors)
        named = [(f"the successors of operator {i}", s) for i, s in enumerate(self.successors)]
        named += [(f"value {i}", (*v.readers, *v.writers)) for i, v in enumerate(self.values)]
        for where, operators in named:
            for other in operators:
                if not 0 <= other < count:
                    raise ValueError(f"{where} name operator {other}; there are {count}, counted from 0")
        for i, value in enumerate(self.values):
            if value.nbytes < 0:
                raise ValueError(f"value {i}: negative size {value.nbytes}")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Units (bytes or elements, as the function says) that are loaded, and that are stored, at the least; and at least
    `moved` are loaded or stored, which may be more than the sum of both."""

    loaded: int
    stored: int
    moved: int


WORK = 1_000_000
"""Edges that `order_free_traffic` may follow: it tries as many operators as that allows, and any of them is right."""


def order_free_traffic(flow: Flow, capacity: int, *, repeats: bool = False, work: int = WORK) -> Traffic:
    """Bytes that every pass in the steady state loads and stores through a fast memory of `capacity` bytes, whatever
    the order of the operators. With `repeats`, also where operators run more than once in a pass.

    The argument. Cut time when some operator o runs; a period from there to the same instant of the next pass has the
    traffic of one pass. (1) Every value that lies below when a pass begins, and that some operator reads before it is
    written, is used within the period: W bytes. (2) A value is alive at o in every order if o touches it, or if it was
    made by an ancestor of o (or was given) and is read by a descendant (or kept to the end): L bytes. It is needed
    again before the pass ends, and nothing can make it anew. Each of these W + L bytes is in the fast memory at the
    cut or is loaded within the period, so loads >= W + L - capacity. (3) The L bytes did not lie below when the pass
    began. Those that are not in the fast memory, beside the operands of o from below (H bytes), were stored, so
    stores >= L + H - capacity. All given values are there together at the first operator, and all kept ones at the
    last: the same holds of them.

    Where operators repeat, a value may be made anew instead of being loaded, so (2) holds only of what o itself
    touches, and (3) of nothing. A value of several writers counts as made when all of them are ancestors: before, and
    between an overwriting and the next reading, it may be dead.
    """
    below = sum(v.nbytes for v in flow.values if v.below and v.readers and v.writers <= v.readers)
    ends = [sum(v.nbytes for v in flow.values if not v.below and end(v)) for end in (_given, _kept)]
    if not flow.successors:
        return Traffic(0, 0, 0)
    operands = _operands(flow)
    alive = [(nbytes, 0) for nbytes in ends]
    alive += operands if repeats else _alive(flow, operands, work)
    loads = max(0, below + max(nbytes for nbytes, _ in alive) - capacity)
    stores = 0 if repeats else max(0, max(nbytes + held for nbytes, held in alive) - capacity)
    return Traffic(loads, stores, loads + stores)


def _given(value: Value) -> bool:
    return value.given


def _kept(value: Value) -> bool:
    return value.kept


def _operands(flow: Flow) -> list[tuple[int, int]]:
    """Per operator, bytes that it touches: not from below, and from below."""
    found = [[0, 0] for _ in flow.successors]
    for value in flow.values:
        for op in value.readers | value.writers:
            found[op][value.below] += value.nbytes
    return [(made, held) for made, held in found]


def _alive(flow: Flow, operands: list[tuple[int, int]], work: int) -> list[tuple[int, int]]:
    """For as many operators as the work allows: bytes alive at each in every order, and those from below it touches.

    Half of the operators are those of the largest operands, half are spread evenly.
    """
    count = len(flow.successors)
    predecessors: list[list[int]] = [[] for _ in range(count)]
    for i, after in enumerate(flow.successors):
        for j in after:
            predecessors[j].append(i)
    made = [v for v in flow.values if not v.below]
    cost = count + sum(map(len, flow.successors)) + sum(1 + len(v.readers) + len(v.writers) for v in flow.values)
    half = max(1, work // cost // 2)
    chosen = set(sorted(range(count), key=lambda o: -sum(operands[o]))[:half]) | set(range(0, count, -(-count // half)))
    found: list[tuple[int, int]] = []
    for op in sorted(chosen):
        before, after = _reached(predecessors, op), _reached(flow.successors, op)
        found.append((sum(v.nbytes for v in made if _alive_at(v, op, before, after)), operands[op][1]))
    return found


def _alive_at(value: Value, op: int, before: set[int], after: set[int]) -> bool:
    if op in value.readers or op in value.writers:
        return True
    exists = value.writers <= before and (value.given or bool(value.writers))
    return exists and (value.kept or not value.readers.isdisjoint(after))


def _reached(edges: Sequence[Iterable[int]], start: int) -> set[int]:
    """What a path of at least one edge leads to."""
    found: set[int] = set()
    open_ends = [start]
    while open_ends:
        for other in edges[open_ends.pop()]:
            if other not in found:
                found.add(other)
                open_ends.append(other)
    return found


def whole_operand_traffic(flow: Flow, capacity: int) -> Traffic:
    """Bytes that every pass in the steady state loads into a fast memory of `capacity` bytes in which every operand
    lies whole and in one piece while an operator uses it: in any order, with operators repeated at will.

    The argument. Of the values from below that are read and never written (s_j bytes each, W together) let P bytes not
    be loaded within a pass. Each of them is at one address all the time, so R = capacity - P addresses are left, and
    W - P = W - capacity + R bytes are loaded. What else the readers of value j touch, o_j bytes, lies in the R. (1) A
    value of which no byte stays is beside that when it is used, so s_j + o_j <= R. (2) A value of which some byte stays
    has its place by that byte, from which it reaches in one piece over what it loads. From an address of the R that it
    covers, the nearest address that is not of the R, on the side where its own byte lies, is inside its place, so it
    holds a byte of this very value: at most two values, one a side, cover the same address, and they load 2R bytes
    together. Hence sum{s_j : s_j + o_j <= R} + 2R >= W - capacity + R, of which the left grows faster than the right:
    the least R at which it holds is below all that a plan can have.
    """
    stays = [v for v in flow.values if v.below and v.readers and not v.writers]
    beside = [0] * len(flow.successors)
    for value in flow.values:
        if not value.below or value.writers:
            for op in value.readers | value.writers:
                beside[op] += value.nbytes
    total, most = sum(v.nbytes for v in stays), max(beside, default=0)
    left, streamed = most, 0
    for needed, nbytes in sorted((v.nbytes + max(beside[op] for op in v.readers), v.nbytes) for v in stays):
        if needed > max(left, total - capacity - streamed):
            break  # so many addresses are enough without this value, which more of them could stream
        left, streamed = max(left, needed), streamed + nbytes
    left = max(left, total - capacity - streamed)
    loaded = min(total, max(0, total - capacity + left))
    return Traffic(loaded, 0, loaded)


def matrix_product_io(
    rows: int, columns: int, inner: int, fast: int, *, count: int = 1, made: int = 0, embedded: bool = False
) -> Traffic:
    """Elements moved at least by `count` products of [rows, inner] and [inner, columns] through a fast memory of `fast`
    elements, by the ordinary algorithm (every a_il b_lj is formed, each c_ij is the sum of its own), in any tiling.

    Hong and Kung (STOC 1981) and Irony, Toledo and Tiskin (JPDC 64, 2004) found mnk/sqrt(M); the constant and the
    lower-order terms are those of Smith et al. (arXiv 1702.02017): a product that also reads C reads at least
    2mnk/sqrt(M) - 2M. Proof: cut the run after every 2M reads. In a piece at most M + 2M elements of A, B and C are
    ever at hand, so by Loomis and Whitney at most sqrt(M M M) multiply-adds are made in it; all but the last piece
    have 2M reads each. A C that begins as zeros saves its mn reads, and needs mn stores: hence the figures here,
    loaded >= 2mnk/sqrt(M) - 2M - mn and moved >= 2mnk/sqrt(M) - 2M; and of course each operand is loaded and each
    result stored once. Products of different operands share the pieces: the sum of x^1.5 is at most the sum's.

    `made`: of the operands, elements that come into being in the fast memory, once each, instead of being loaded; they
    count in the pieces as if they were. `embedded`: other operators come before and after, so up to M elements of the
    operands may be in the fast memory when the product begins, which the pieces allow for, and its results may be used
    up there without ever being stored.

    Raises:
        ValueError: a size below one.
    """
    _require_positive(rows=rows, columns=columns, inner=inner, fast=fast, count=count)
    work, results = count * rows * columns * inner, count * rows * columns
    pieces = 2 * isqrt(work * work // fast) - 2 * fast - made
    loaded = max(0, pieces - results, count * inner * (rows + columns) - made - (fast if embedded else 0))
    return Traffic(loaded, 0, loaded) if embedded else Traffic(loaded, results, max(loaded + results, pieces))


def attention_io(
    queries: int,
    keys: int,
    width: int,
    fast: int,
    *,
    pairs: int | None = None,
    count: int = 1,
    made: int = 0,
    embedded: bool = False,
) -> Traffic:
    """Elements moved at least by `count` heads of exact attention: `queries` and `keys` rows of `width` elements each
    through a fast memory of `fast` elements, in any tiling, with scores made anew at will and never stored.

    FlashAttention (arXiv 2205.14135, section 3.2) moves of the order of N^2 d^2 / M, and its Proposition 3 says that
    nothing does better at every M; Saha and Ye (arXiv 2402.07443) say so at each M >= d^2. Neither gives a constant;
    this one follows from their argument. Cut the run after every M elements moved. In a piece at most 2M elements of
    Q and K are at hand. Scores of which all d products are formed within the piece need whole rows: with q rows of Q
    and k of K, (q + k) d <= 2M, so at most (M/d)^2 scores, M^2/d products. Of the other scores a partial sum is in
    the fast memory at the beginning or at the end of the piece, or is moved in it: at most 3M scores, and by Loomis
    and Whitney at most sqrt(M M 3M) products. Of the P d products that are needed (P = `pairs`, those that a mask
    leaves in a head; all by default) each piece makes at most M^2/d + sqrt(3) M^1.5, and all but the last piece move M
    elements. Besides, Q, K and V are loaded and the output is stored once; `made` (of Q, K and V together) and
    `embedded` as in `matrix_product_io`.

    Raises:
        ValueError: a size below one, more pairs than there are.
    """
    _require_positive(queries=queries, keys=keys, width=width, fast=fast, count=count)
    scores = queries * keys if pairs is None else pairs
    if not 0 <= scores <= queries * keys:
        raise ValueError(f"{scores} pairs of {queries} queries and {keys} keys; there are {queries * keys}")
    a_piece = fast * fast // width + 1 + isqrt(3 * fast**3) + 1
    pieces = fast * (-(-count * scores * width // a_piece) - 1) - made if scores else 0
    # A mask may leave rows without a pair; those that have one number at least P / (rows of the other side).
    used = -(-scores // keys) + 2 * -(-scores // queries)
    loaded = max(0, count * used * width - made - (fast if embedded else 0))
    stored = 0 if embedded else count * -(-scores // keys) * width
    return Traffic(loaded, stored, max(loaded + stored, pieces))


def _require_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
