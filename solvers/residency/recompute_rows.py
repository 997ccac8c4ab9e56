"""The rows of the program of `recompute`, one family a function; `recompute_model` tells why every plan keeps them."""

from __future__ import annotations

import math

import numpy as np

from ..builder import Columns
from .recompute_columns import Draft, Key


def _sources(draft: Draft, u: int, w: int) -> list[int]:
    """Columns whose sum limits how much of u can be there in window w, where it is neither touched at its check nor
    made first in it: P_uw, l_uw, R of its maker."""
    found = [draft.present[u, w], draft.loads[u, w]]
    maker = draft.masses[u].maker
    if maker >= 0:
        found.append(draft.calls[maker, w])
    return found


def comes_back(draft: Draft) -> None:
    """1 <= P_uw + l_uw + R_vw where u is touched in window w or at its end; P_u(w+1) <= the same where it is not."""
    for u, w in draft.present:
        terms = [(j, 1.0) for j in _sources(draft, u, w)]
        if draft.within(u, w):
            draft.row(1.0, math.inf, *terms)
        elif (u, w + 1) in draft.present:
            draft.row(0.0, math.inf, *terms, (draft.present[u, w + 1], -1.0))


def reads_are_there(draft: Draft) -> None:
    """R_vw <= P_uw + l_uw + R_v'w for each u that v reads and v' makes, where u is not touched in the window."""
    for (v, w), column in draft.calls.items():
        for u in (draft.number[read] for read in draft.problem.reads[v] if read in draft.number):
            if (u, w) in draft.present and not draft.within(u, w):
                draft.row(0.0, math.inf, *((j, 1.0) for j in _sources(draft, u, w)), (column, -1.0))


def stored_before_absent(draft: Draft) -> None:
    """C_u(w+1) >= C_uw; l_uw <= C_u(w+1); where a later step needs u, 1 - P_uw <= C_uw + Y_vw; where v reads it,
    Y_vw <= P_uw + C_uw + Y of the maker of u."""
    for (u, w), column in draft.stored.items():
        if (u, w + 1) in draft.stored:
            draft.row(0.0, math.inf, (draft.stored[u, w + 1], 1.0), (column, -1.0))
    for (u, w), column in draft.loads.items():
        draft.row(0.0, math.inf, (draft.stored[u, w + 1], 1.0), (column, -1.0))
    later = _called_from(draft)

    def kept(u: int, w: int) -> list[tuple[int, float]]:
        maker = draft.masses[u].maker
        again = [(later[maker, w], 1.0)] if maker >= 0 else []
        return [(draft.present[u, w], 1.0), (draft.stored[u, w], 1.0), *again]

    for u, w in draft.present:
        if draft.masses[u].touches[-1] > draft.windows.check(w):
            draft.row(1.0, math.inf, *kept(u, w))
    for (v, w), column in later.items():
        for u in (draft.number[read] for read in draft.problem.reads[v] if read in draft.number):
            if (u, w) in draft.present:
                draft.row(0.0, math.inf, *kept(u, w), (column, -1.0))


def _called_from(draft: Draft) -> dict[Key, int]:
    """Columns Y_vw <= R_vw + Y_v(w+1), at most 1."""
    found: dict[Key, int] = {}
    after: dict[int, int] = {}
    for v, w in sorted(draft.calls, reverse=True):
        (column,) = draft.builder.add_columns(1, 1.0).tolist()
        terms = [(draft.calls[v, w], 1.0), (column, -1.0)]
        if v in after:
            terms.append((after[v], 1.0))
        draft.row(0.0, math.inf, *terms)
        found[v, w] = after[v] = column
    return found


def at_home(draft: Draft) -> tuple[dict[tuple[int, ...], tuple[int, float]], Columns, Columns]:
    """X_(w+1) = X_w + L_w - sum of s_g e_g due in the window, all round the pass.

    Returns the columns of e with their sizes, by the windows at whose checks they are unused (gaps that agree in these
    are one, as they are due in the same window), those of X and those of L.
    """
    problem, builder, count = draft.problem, draft.builder, draft.windows.count
    sums: dict[tuple[int, ...], float] = {}
    for gap in problem.gaps:
        first, end = draft.windows.of(gap.start) + 1, draft.windows.of(gap.end - 1)
        covered = tuple(range(first, end + 1))
        if covered and gap.nbytes:
            sums[covered] = sums.get(covered, 0.0) + gap.nbytes / draft.byte_unit
    every = sum(sums.values())
    columns = builder.add_columns(len(sums), 1.0).tolist() if sums else []
    absent = {key: (column, sums[key]) for key, column in zip(sums, columns, strict=True)}
    ahead, loaded = (builder.add_columns(count, every) for _ in range(2))
    due: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for key, entry in absent.items():
        due[key[-1] % count].append(entry)
    for w in range(count):
        following = int(ahead[(w + 1) % count])
        terms = [(following, 1.0), (int(ahead[w]), -1.0), (int(loaded[w]), -1.0)]
        draft.row(0.0, 0.0, *(terms if following != ahead[w] else terms[2:]), *due[w])
    return absent, ahead, loaded


def capacity(draft: Draft, absent: dict[tuple[int, ...], tuple[int, float]], ahead: Columns) -> Columns:
    """Operands and results of step c_w + sum of s_u P_uw + X_w + sum of s_g (1 - e_g) over the gaps around it <= M."""
    problem, count = draft.problem, draft.windows.count
    room = [(problem.capacity_nbytes - problem.needed_nbytes[c]) / draft.byte_unit for c in draft.windows.checks]
    terms: list[list[tuple[int, float]]] = [[(int(x), 1.0)] for x in ahead]
    for (u, w), column in draft.present.items():
        terms[w % count].append((column, draft.sizes[u]))
    for covered, (column, size) in absent.items():
        for w in covered:
            terms[w % count].append((column, -size))
            room[w % count] -= size
    first = len(draft.rows)
    for w in range(count):
        draft.row(-math.inf, room[w], *terms[w])
    return np.arange(first, first + count)


def links(draft: Draft, loaded: Columns) -> tuple[Columns, Columns]:
    """sum of s_u l_uw + L_w <= B (D_w + q_w); sum of s_u (C_u(w+1) - C_uw) <= B' (D_w + q_w); on a shared channel the
    times of both add up. The rows of loads and those of stores, which may be the same."""
    problem, count = draft.problem, draft.windows.count
    per_unit = 1e-9 * draft.ns_unit / draft.byte_unit
    load, store = problem.load_bytes_per_s * per_unit, problem.store_bytes_per_s * per_unit
    loads: list[list[tuple[int, float]]] = [[(int(x), 1.0 / load)] for x in loaded]
    stores: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for (u, w), column in draft.loads.items():
        loads[w % count].append((column, draft.sizes[u] / load))
    for (u, w), column in draft.stored.items():
        # What has been stored by check w was so in window w - 1 or before; the first window is that of its making.
        stores[(w - 1) % count].append((column, draft.sizes[u] / store))
        if (u, w + 1) in draft.stored:
            stores[w % count].append((column, -draft.sizes[u] / store))
    bounds = [*draft.windows.checks, draft.windows.steps]
    first = len(draft.rows)
    for w in range(count):
        span = sum(problem.durations_ns[bounds[w] : bounds[w + 1]]) / draft.ns_unit
        wait = (int(draft.waits[w]), -1.0)
        lanes = ([*loads[w], *stores[w]],) if problem.shared_channel else (loads[w], stores[w])
        for lane in lanes:
            draft.row(-math.inf, span, wait, *lane)
    rows = np.arange(first, len(draft.rows)).reshape(count, -1)
    return rows[:, 0], rows[:, -1]


def calls_take_time(draft: Draft) -> Columns:
    """q_w >= sum of d_v R_vw."""
    terms: list[list[tuple[int, float]]] = [[(int(q), -1.0)] for q in draft.waits]
    for (v, w), column in draft.calls.items():
        terms[w].append((column, draft.problem.durations_ns[v] / draft.ns_unit))
    first = len(draft.rows)
    for row in terms:
        draft.row(-math.inf, 0.0, *row)
    return np.arange(first, first + draft.windows.count)


def once_or_never(draft: Draft) -> Columns:
    """sum over w of R_vw = y_v, y_v in {0, 1}: for the search for plans, no bound of all."""
    makers = sorted({v for v, _ in draft.calls})
    chosen = draft.builder.add_columns(len(makers), 1.0)
    terms: dict[int, list[tuple[int, float]]] = {v: [(int(y), -1.0)] for v, y in zip(makers, chosen, strict=True)}
    for (v, _), column in draft.calls.items():
        terms[v].append((column, 1.0))
    for row in terms.values():
        draft.row(0.0, 0.0, *row)
    return chosen


def flush(draft: Draft) -> None:
    """All rows into the builder at once."""
    rows = draft.rows
    where = draft.builder.add_rows(len(rows), np.array([r[0] for r in rows]), np.array([r[1] for r in rows]))
    counts = [len(r[2]) for r in rows]
    columns = np.array([j for r in rows for j in r[2]], dtype=np.int64)
    values = np.array([a for r in rows for a in r[3]], dtype=np.float64)
    draft.builder.put(np.repeat(where, counts), columns, values)
