"""What the program of `recompute` counts: windows, the bytes that have columns of their own, and these columns."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from ..builder import Columns, ProgramBuilder
from .recompute import RecomputeProblem

SMALL_SHARE = 1e-3
"""Values that take less than this share of the capacity all together are counted as always present, at no bytes."""

Key = tuple[int, int]
"""Number of a mass or step, and of a window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Window w lasts from the start of step `check(w)` to that of `check(w + 1)`; those from `count` on lie in the next
    pass. `checks` ascend from step 0."""

    checks: tuple[int, ...]
    steps: int

    @property
    def count(self) -> int:
        """Windows of a pass."""
        return len(self.checks)

    def check(self, window: int) -> int:
        """The step with which a window begins."""
        turn, own = divmod(window, self.count)
        return turn * self.steps + self.checks[own]

    def of(self, step: int) -> int:
        """The window in which a step lies."""
        turn, own = divmod(step, self.steps)
        return turn * self.count + bisect_right(self.checks, own) - 1

    def within(self, touches: tuple[int, ...], window: int) -> bool:
        """Whether some of these steps comes after the window's check, and before or at the next one."""
        after = bisect_right(touches, self.check(window))
        return after < len(touches) and touches[after] <= self.check(window + 1)

    def looking(self, touches: tuple[int, ...], until: int) -> list[int]:
        """The windows at whose checks it matters whether something is present that is made at the first of `touches`
        and of use until step `until`: those behind that step at which it is not touched."""
        first, end = self.of(touches[0]) + 1, self.of(until)
        end += self.check(end) < until
        return [w for w in range(first, end) if not _holds(touches, self.check(w))]


def _holds(touches: tuple[int, ...], step: int) -> bool:
    at = bisect_left(touches, step)
    return at < len(touches) and touches[at] == step


@dataclass(frozen=True, slots=True)
class Mass:
    """A value, or several of which all rows would be the same but for their bytes: one row then stands for their sum.

    `maker` is the step whose operator may make it again, -1 where none may; `until` the last step to which its presence
    may be of use, its own last use or that of what is made from it again.
    """

    nbytes: int
    touches: tuple[int, ...]
    maker: int
    until: int


def masses_of(problem: RecomputeProblem, windows: Windows) -> tuple[list[Mass], dict[int, int]]:
    """The masses that are large enough to count, and the numbers among them of values that stand alone.

    Those stand alone that may be made again, or that are read where something is. What no check looks at is left out.
    """
    values = problem.values
    makers = {v.touches[0] for v in values if v.maker}
    alone = {u for u, v in enumerate(values) if v.maker} | {u for t in makers for u in problem.reads[t]}
    alike: dict[tuple[object, ...], list[int]] = {}
    for u, value in enumerate(values):
        seen = windows.looking(value.touches, value.touches[-1])
        if u not in alone and seen:
            shape = tuple((w, windows.within(value.touches, w)) for w in seen)
            alike.setdefault((windows.of(value.touches[0]), shape), []).append(u)
    groups = sorted([*([u] for u in alone), *alike.values()])
    nbytes = [sum(values[u].nbytes for u in group) for group in groups]
    small, total = set[int](), 0
    for n in sorted(range(len(groups)), key=lambda n: nbytes[n]):
        total += nbytes[n]
        if total > SMALL_SHARE * problem.capacity_nbytes:
            break
        small.add(n)
    large = [n for n in range(len(groups)) if n not in small]
    until = _useful_until(problem, {groups[n][0] for n in large} & alone)
    found: list[Mass] = []
    for n in large:
        u = groups[n][0]
        maker = values[u].touches[0] if values[u].maker else -1
        found.append(Mass(nbytes[n], values[u].touches, maker, until[u]))
    return found, {groups[n][0]: k for k, n in enumerate(large) if groups[n][0] in alone}


def _useful_until(problem: RecomputeProblem, counted: set[int]) -> list[int]:
    """For each value its own last use, or that of what is made from it again, if that counts."""
    until = [v.touches[-1] for v in problem.values]
    made: list[list[int]] = [[] for _ in problem.durations_ns]
    for u in counted:
        if problem.values[u].maker:
            made[problem.values[u].touches[0]].append(u)
    for t in reversed(range(len(problem.durations_ns))):
        for u in problem.reads[t]:
            until[u] = max([until[u], *(until[out] for out in made[t])])
    return until


@dataclass(slots=True, eq=False)
class Draft:
    """The problem in scaled floats, and the columns and rows so far. `sizes` are those of the masses, in `byte_unit`.

    Columns by (mass, window): P in `present`, l in `loads`, C in `stored`; by (step, window) R in `calls`. Windows
    count on into the next pass here.
    """

    problem: RecomputeProblem
    windows: Windows
    masses: list[Mass]
    number: dict[int, int]
    sizes: list[float]
    builder: ProgramBuilder
    byte_unit: float
    ns_unit: float
    waits: Columns
    present: dict[Key, int]
    stored: dict[Key, int]
    loads: dict[Key, int]
    calls: dict[Key, int]
    rows: list[tuple[float, float, list[int], list[float]]]

    def within(self, mass: int, window: int) -> bool:
        """Whether a first call touches the mass in the window after its check, or at the next one."""
        return self.windows.within(self.masses[mass].touches, window)

    def row(self, lower: float, upper: float, *terms: tuple[int, float]) -> None:
        """A row over these columns and coefficients."""
        self.rows.append((lower, upper, [j for j, _ in terms], [a for _, a in terms]))


def draft_of(problem: RecomputeProblem, checks: tuple[int, ...]) -> Draft | None:
    """The columns: q_w; P_uw at each check between the first step of u and the last at which it is of use, unless u is
    touched there; C_uw from then on to the end of the last window; l_uw and R_vw in the windows that begin with such a
    check. None where there is nothing to decide."""
    if not checks or not (problem.values or problem.gaps):
        return None
    windows = Windows(checks, len(problem.durations_ns))
    masses, number = masses_of(problem, windows)
    total = sum(problem.durations_ns)
    ns_unit = total / len(checks) or 1e6
    builder = ProgramBuilder()
    rates = (problem.load_bytes_per_s, problem.store_bytes_per_s)
    sizes = float(sum(v.nbytes for v in problem.values) + sum(g.nbytes for g in problem.gaps))
    # Storing once, loading and making again everything in each window is possible; no wait need be longer than that.
    longest = (total + sum(2e9 * sizes / rate for rate in rates)) / ns_unit + 1.0
    waits = builder.add_columns(len(checks), longest)
    keys, stores = list[Key](), list[Key]()
    for u, mass in enumerate(masses):
        own = windows.looking(mass.touches, mass.until)
        keys += [(u, w) for w in own]
        if own:
            # It may be stored from its first step on, also while first calls still touch it.
            stores += [(u, w) for w in range(windows.of(mass.touches[0]) + 1, own[-1] + 2)]
    calls = dict.fromkeys((masses[u].maker, w) for u, w in keys if masses[u].maker >= 0)
    present, loads, stored, again = (_columns(builder, k) for k in (keys, keys, stores, list(calls)))
    nbytes = float(max(1, problem.capacity_nbytes))
    scaled = [m.nbytes / nbytes for m in masses]
    return Draft(
        problem, windows, masses, number, scaled, builder, nbytes, ns_unit, waits, present, stored, loads, again, []
    )


def _columns(builder: ProgramBuilder, keys: list[Key]) -> dict[Key, int]:
    return dict(zip(keys, builder.add_columns(len(keys), 1.0).tolist(), strict=True)) if keys else {}
