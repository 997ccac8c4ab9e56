"""The program of `recompute` as a whole, and why every plan satisfies its rows, which `recompute_rows` lists.

Take a plan, periodic, whose first calls come in the given order, and of its steady state the mean over passes. With
c_w the checks, window w from the start of step c_w to that of c_(w+1), the last one to the end of the pass, read off:

    q_w       time of window w beyond the first calls in it
    P_uw      bytes of value u present through the whole of the start of step c_w (that it touches none)
    R_vw      1 if operator v is called again in window w, else 0
    Y_vw      1 if operator v is called again in window w or a later one, else 0
    l_uw      bytes of u that are loaded in window w; at most all of u (further rounds of the same bytes are left out)
    C_uw      bytes of u that have been stored at least once before check w
    e_g, X_w  of what is never written: bytes that do not stay through gap g; those of them that have come for good by
              check w

each but q as a fraction of its value's bytes, except X. Then:

- q_w >= sum of d_v R_vw, as calls follow one another.
- A value that is a byte absent at check w and present later in the window, or at the next check, has been loaded in
  between or made again. So presence at the end <= P_uw + l_uw + R_vw, and <= 1; where a first call touches u within the
  window it must be there, so 1 <= P_uw + l_uw + R_vw; after that use nothing is asked for the rest of the window.
- What v reads is there at some time in a window that calls v again, so R_vw <= P_uw + l_uw + R of the maker of u; where
  u is touched in the window, or made in it for the first time, nothing is asked.
- Bytes absent at check w that a later first call needs come back first by a load, and then they were stored before the
  check, or by a call of the maker after it: 1 - P_uw <= C_uw + Y_vw. So do those that a later repeated call reads:
  Y_v'w <= P_uw + C_uw + Y_vw. Older calls' copies are as good here as the newest's; the checker asks for that one.
  Without the second of these rows fractions would cheat: a tenth of what is read, stored once and loaded ten times,
  would make ten tenths of what is made.
- What is at home and written is a value from each write to the next, which finds it whole: a copy from before the write
  is old, and so it must be stored again before it may be absent. Its life may reach into the next pass, and windows
  count on there; what falls into such a window w + W counts in window w of the mean pass.
- What is loaded in window w was stored by its end: l_uw <= C_u(w+1). Bytes that are stored for the first time in a
  window take the link's time in it, and so do loads; links run through first calls, waits and repeated calls alike.
- At each check operands, results and all else that is present fit the capacity. Room for what is called again between
  checks, for bytes under way and for alignment is left out.
- What no later use or recomputation can profit from counts as absent; a call that only makes such bytes as not made.
- Values that no call makes again, and none reads, have the same rows where they are touched in the same windows; the
  rows of several are added up, with means of their fractions.

Everything that is left out makes the program's optimum smaller. Fractions and means do so, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..builder import Columns
from ..linear import Floats, LinearProgram
from . import recompute_rows as rows
from .recompute import RecomputeProblem, RecomputeSolution
from .recompute_columns import Key, draft_of


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The program, and where its columns stand. `calls[v, w]` is the column of R_vw."""

    program: LinearProgram
    problem: RecomputeProblem
    checks: tuple[int, ...]
    waits: Columns
    calls: dict[Key, int]
    capacity_rows: Columns
    load_rows: Columns
    store_rows: Columns
    call_rows: Columns
    byte_unit: float
    ns_unit: float

    def mended(self, duals: Floats) -> Floats:
        """The same multipliers with those of each window's time scaled down where they exceed the price of a wait.

        Any multipliers give a bound; but a wait may be very long, and would multiply the least excess that an engine's
        tolerance leaves.
        """
        mended = duals.copy()
        rows = np.unique(np.concatenate([self.load_rows, self.store_rows, self.call_rows]))
        window = {int(j): w for w, j in enumerate(self.waits)}
        starts, indices, values = self.program.starts, self.program.indices, self.program.values
        excess = np.zeros(len(self.waits))
        found: list[tuple[int, int]] = []
        for row in rows.tolist():
            for k in range(starts[row], starts[row + 1]):
                w = window.get(int(indices[k]))
                if w is not None:
                    excess[w] += float(values[k]) * min(0.0, float(duals[row]))
                    found.append((row, w))
        for row, w in found:
            if excess[w] > 1.0 - 1e-12:
                mended[row] = min(0.0, float(duals[row])) * (1.0 - 1e-12) / excess[w]
        return mended

    def read(self, values: Floats, duals: Floats | None) -> RecomputeSolution:
        """Columns in the problem's own units."""
        problem = self.problem
        repeated = [0.0] * len(problem.durations_ns)
        for (v, _), j in self.calls.items():
            repeated[v] += max(0.0, float(values[j]))
        y = np.maximum(0.0, -duals) if duals is not None and len(duals) else np.zeros(len(self.program.row_lower))
        return RecomputeSolution(
            checks=self.checks,
            repeated=tuple(repeated),
            price=tuple((y[self.capacity_rows] * self.ns_unit / self.byte_unit).tolist()),
            load_price=tuple((y[self.load_rows] * 1e9 / problem.load_bytes_per_s).tolist()),
            store_price=tuple((y[self.store_rows] * 1e9 / problem.store_bytes_per_s).tolist()),
            call_price=tuple(y[self.call_rows].tolist()),
            waited_ns=tuple((np.maximum(0.0, values[self.waits]) * self.ns_unit).tolist()),
        )


def build(problem: RecomputeProblem, checks: tuple[int, ...], *, whole: bool = False) -> Model | None:
    """The program with memory looked at in these steps, 0 first; None where there is nothing to decide."""
    draft = draft_of(problem, checks)
    if draft is None:
        return None
    rows.comes_back(draft)
    rows.reads_are_there(draft)
    rows.stored_before_absent(draft)
    absent, ahead, loaded = rows.at_home(draft)
    capacity_rows = rows.capacity(draft, absent, ahead)
    load_rows, store_rows = rows.links(draft, loaded)
    call_rows = rows.calls_take_time(draft)
    chosen = rows.once_or_never(draft) if whole else None
    rows.flush(draft)
    cost = np.zeros(draft.builder.columns)
    cost[draft.waits] = 1.0
    program = draft.builder.program(cost)
    if chosen is not None:
        integer = np.zeros(len(program.cost), dtype=np.bool_)
        integer[chosen] = True
        program = replace(program, integer=integer)
    return Model(
        program, problem, checks, draft.waits, draft.calls, capacity_rows, load_rows, store_rows, call_rows,
        draft.byte_unit, draft.ns_unit,
    )  # fmt: skip
