"""The independent checker of residency solutions, from the definitions, sharing nothing with the linear program."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, chain, pairwise

from .problem import Gap, ResidencyProblem, ResidencySolution


def check_residency(
    problem: ResidencyProblem, solution: ResidencySolution, *, tolerance: float = 1e-6
) -> tuple[str, ...]:
    """Every violation of the fluid timeline with its numbers; empty when the solution is right.

    Bytes may be off by `tolerance` times the capacity (or the largest sum of bytes moved), times by `tolerance` times
    the pass: a solution is floats of an engine.
    """
    steps, gaps = len(problem.durations_ns), problem.gaps
    per_gap = (solution.absent, solution.stored, solution.ahead)
    transfers = (
        (solution.loaded_waiting, solution.loaded_running),
        (solution.stored_waiting, solution.stored_running),
        (solution.ahead_waiting, solution.ahead_running),
    )
    if any(len(row) != len(gaps) for row in per_gap):
        return (f"fractions for {[len(row) for row in per_gap]} gaps, there are {len(gaps)}",)
    if any(len(row) != steps for row in chain(*transfers, [solution.stall_ns])):
        return (f"numbers per step that are not {steps} long",)
    moved = sum(gap.nbytes for gap in gaps)
    slack = tolerance * max(problem.capacity_nbytes, moved, 1)
    return tuple(
        chain(
            _fractions(problem, solution, tolerance),
            (
                f"a negative wait or transfer: {x}"
                for row in (solution.stall_ns, *chain(*transfers))
                for x in row
                if x < 0
            ),
            _links(problem, solution, slack),
            _memory(problem, solution, slack),
            _ahead(problem, solution, slack),
        )
    )


def _fractions(problem: ResidencyProblem, solution: ResidencySolution, tolerance: float) -> list[str]:
    """Fractions are in [0, 1]; nothing dirty is dropped that was not stored; what begins below is absent."""
    found: list[str] = []
    items: dict[int, list[int]] = {}
    for g, gap in enumerate(problem.gaps):
        absent, stored, ahead = solution.absent[g], solution.stored[g], solution.ahead[g]
        for word, value in (("absent", absent), ("stored", stored), ("ahead", ahead)):
            if not -tolerance <= value <= 1 + tolerance:
                found.append(f"gap {g}: {word} is {value}, not within [0, 1]")
        if stored > absent + tolerance or ahead > 1 - absent + tolerance:
            found.append(f"gap {g}: {absent} absent, but {stored} stored when it begins and {ahead} while kept")
        if gap.start < 0 and absent < 1 - tolerance and gap.nbytes:
            found.append(f"gap {g}: item {gap.item} begins the pass below, but only {absent} of it is absent")
        items.setdefault(gap.item, []).append(g)
    for mine in items.values():
        mine.sort(key=lambda g: problem.gaps[g].start)
        for k, g in enumerate(mine):
            earlier = sum(solution.stored[h] + solution.ahead[h] for h in mine[:k])
            if not problem.gaps[g].clean and problem.gaps[g].nbytes and problem.gaps[g].start >= 0:
                lacking = solution.absent[g] - solution.stored[g] - earlier
                if lacking > tolerance * (k + 1):
                    found.append(f"gap {g}: {lacking} of item {problem.gaps[g].item} is dropped and was never stored")
    return found


def _links(problem: ResidencyProblem, solution: ResidencySolution, slack: float) -> list[str]:
    """In each phase no direction moves more than its rate times the time."""
    found: list[str] = []
    load, store = problem.load_bytes_per_s * 1e-9, problem.store_bytes_per_s * 1e-9
    for word, times, down, up, up_ahead in (
        ("waiting", solution.stall_ns, solution.loaded_waiting, solution.stored_waiting, solution.ahead_waiting),
        ("running", problem.durations_ns, solution.loaded_running, solution.stored_running, solution.ahead_running),
    ):
        for t, ns in enumerate(times):
            stored = up[t] + up_ahead[t]
            if problem.shared_channel and load > 0 and store > 0:
                spare = [("channel", ns * load - down[t] - stored * load / store)]
            else:
                spare = [("load", ns * load - down[t]), ("store", ns * store - stored)]
            found += [f"step {t}, {word}: the {name} link moves {-s} bytes too many" for name, s in spare if s < -slack]
    return found


def _levels(problem: ResidencyProblem, before: list[float], after: list[float]) -> list[float]:
    """Running level after each of the alternating changes, from the least level that never falls below zero.

    A problem that is not periodic begins with nothing.
    """
    levels = list(accumulate(chain.from_iterable(zip(before, after, strict=True)), initial=0.0))[1:]
    lift = max(0.0, -min(levels, default=0.0)) if problem.periodic else 0.0
    return [level + lift for level in levels]


def _memory(problem: ResidencyProblem, solution: ResidencySolution, slack: float) -> list[str]:
    """Base, kept, prefetched and pending bytes fit at the start and at the end of each operator."""
    steps = len(problem.durations_ns)
    due, begun = [0.0] * steps, [0.0] * steps
    kept = [0.0] * steps
    for g, gap in enumerate(problem.gaps):
        due[gap.end % steps] += gap.nbytes * solution.absent[g]
        if gap.start >= 0:
            begun[gap.start] += gap.nbytes * solution.stored[g]
        for t in range(gap.start + 1, gap.end):
            kept[t % steps] += gap.nbytes * (1 - solution.absent[g])
    found: list[str] = []
    # Levels alternate: at the operator's start (after the wait), at its end.
    fetched = _levels(
        problem, [x - y for x, y in zip(solution.loaded_waiting, due, strict=True)], list(solution.loaded_running)
    )
    # A store that a gap begins with joins after the operator, so it is counted from the next wait on.
    joined = [begun[t - 1] if t or problem.periodic else 0.0 for t in range(steps)]
    pending = _levels(
        problem,
        [x - y for x, y in zip(joined, solution.stored_waiting, strict=True)],
        [-x for x in solution.stored_running],
    )
    for k, (x, p) in enumerate(zip(fetched, pending, strict=True)):
        t, word = k // 2, ("start", "end")[k % 2]
        total = problem.base_nbytes[t] + kept[t] + x + p
        if x < -slack:
            found.append(f"step {t}: {-x} bytes are used before they are loaded")
        if p < -slack:
            found.append(f"step {t}: {-p} bytes are stored before they are dropped")
        if total > problem.capacity_nbytes + slack:
            found.append(f"step {t}, {word}: {total} bytes are held, the capacity is {problem.capacity_nbytes}")
    if pending and not problem.periodic and pending[-1] > slack:
        found.append(f"{pending[-1]} bytes of {sum(begun)} dropped are never stored")
    if problem.periodic:
        for word, total, wanted in (
            ("loaded", sum(solution.loaded_waiting) + sum(solution.loaded_running), sum(due)),
            ("stored", sum(solution.stored_waiting) + sum(solution.stored_running), sum(begun)),
        ):
            if abs(total - wanted) > slack:
                found.append(f"{total} bytes are {word} in a pass, {wanted} must be")
    return found


def _ahead(problem: ResidencyProblem, solution: ResidencySolution, slack: float) -> list[str]:
    """Stores ahead happen after their gap begins and are done when the item's next gap begins."""
    steps = len(problem.durations_ns)
    free, wanted = [0.0] * steps, [0.0] * steps
    items: dict[int, list[Gap]] = {}
    for gap in problem.gaps:
        items.setdefault(gap.item, []).append(gap)
    share = {(gap.item, gap.start): solution.ahead[g] for g, gap in enumerate(problem.gaps)}
    for mine in items.values():
        mine.sort(key=lambda gap: gap.start)
        for gap, later in pairwise(mine):
            nbytes = gap.nbytes * share[gap.item, gap.start]
            if nbytes:
                free[gap.start] += nbytes
                wanted[later.start] += nbytes
        last = mine[-1]
        if share[last.item, last.start] * last.nbytes > slack:
            return [f"item {last.item}: stored ahead in its last gap, to no end"]
    done = list(accumulate(x + y for x, y in zip(solution.ahead_waiting, solution.ahead_running, strict=True)))
    may = [0.0, *accumulate(free)]
    must = list(accumulate(wanted))
    found = [
        f"step {t}: {done[t] - may[t]} bytes stored ahead too early" for t in range(steps) if done[t] > may[t] + slack
    ]
    found += [
        f"step {t}: {must[t] - done[t]} bytes stored ahead too late" for t in range(steps) if done[t] < must[t] - slack
    ]
    return found


def fluid_time(
    problem: ResidencyProblem, absent: tuple[float, ...] | tuple[Fraction, ...], *, passes: int = 64
) -> Fraction | None:
    """Nanoseconds of a pass when these fractions are absent, in exact rationals; None if what is kept never fits.

    Loads run as early as later steps' memory permits, stores from the instant of dropping. Without stores that is the
    fastest timeline of these fractions, otherwise one that can be had. A periodic problem is run until two passes
    take the same time, `passes` at most (the last one's time is then what is returned: no pass after it is slower).
    """
    steps, load, store = len(problem.durations_ns), *_rates(problem)
    share = [Fraction(x) for x in absent]
    kept, due, dropped = _profiles(problem, share)
    room = [problem.capacity_nbytes - problem.base_nbytes[t] - kept[t] for t in range(steps)]
    if steps and min(room) < 0:
        return None
    if problem.shared_channel and sum(dropped):
        raise ValueError("the exact timeline of a shared channel with stores is not defined by this policy")
    previous, loaded, used, pending = Fraction(-1), Fraction(0), Fraction(0), Fraction(0)
    for _ in range(passes if problem.periodic else 1):
        total = Fraction(0)
        for t in range(steps):
            # Wait until what is due is in, and until pending stores leave room for the operator.
            short = max(Fraction(0), used + due[t] - loaded)
            wait = _over(short, load)
            crowd = max(Fraction(0), max(loaded, used + due[t]) - used - due[t] + pending - room[t])
            wait_store = _over(crowd, store)
            if wait is None or wait_store is None:
                return None
            idle = max(wait, wait_store)
            loaded, used = loaded + short, used + due[t]
            pending = max(Fraction(0), pending - idle * store)
            # During the operator: no more than the rate, than fits at its end, than fits at each later step.
            pending = max(Fraction(0), pending - problem.durations_ns[t] * store)
            fits = used + room[t] - pending
            most = min(fits, _envelope(problem, room, due, t) + used)
            loaded = max(loaded, min(loaded + problem.durations_ns[t] * load, most))
            pending += dropped[t]
            total += idle + problem.durations_ns[t]
        if not problem.periodic or total == previous:
            return total
        previous = total
    return previous


def _rates(problem: ResidencyProblem) -> tuple[Fraction, Fraction]:
    """Bytes per nanosecond."""
    return Fraction(problem.load_bytes_per_s) / 10**9, Fraction(problem.store_bytes_per_s) / 10**9


def _over(nbytes: Fraction, rate: Fraction) -> Fraction | None:
    """Nanoseconds that the bytes take; None where they cannot move."""
    return Fraction(0) if nbytes == 0 else (nbytes / rate if rate else None)


def _profiles(
    problem: ResidencyProblem, share: list[Fraction]
) -> tuple[list[Fraction], list[Fraction], list[Fraction]]:
    """Bytes kept throughout each step, due at it, and to be stored after it."""
    steps = len(problem.durations_ns)
    kept, due, dropped = ([Fraction(0)] * steps for _ in range(3))
    stored: dict[int, Fraction] = {}
    for g in sorted(range(len(problem.gaps)), key=lambda g: problem.gaps[g].start):
        gap = problem.gaps[g]
        due[gap.end % steps] += gap.nbytes * share[g]
        for t in range(gap.start + 1, gap.end):
            kept[t % steps] += gap.nbytes * (1 - share[g])
        if not gap.clean and gap.start >= 0:
            new = max(Fraction(0), share[g] - stored.get(gap.item, Fraction(0)))
            stored[gap.item] = stored.get(gap.item, Fraction(0)) + new
            dropped[gap.start] += gap.nbytes * new
    return kept, due, dropped


def _envelope(problem: ResidencyProblem, room: list[Fraction], due: list[Fraction], t: int) -> Fraction:
    """Most bytes that may be prefetched beyond those used up to step t, so that every later step has room for them.

    Nor more than is due until the same step of the next pass (or the end of the last): the rest would not be absent.
    """
    steps = len(room)
    most, needed = room[t], Fraction(0)
    for later in range(t + 1, t + 1 + steps if problem.periodic else steps):
        needed += due[later % steps]
        most = min(most, needed + room[later % steps])
    return min(most, needed)
