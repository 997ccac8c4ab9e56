"""The validator of the oracle's answers: it replays a pass with sets, and knows nothing of how it was found."""

from __future__ import annotations

from .problem import Begin, End, TrafficProblem, TrafficSolution


def moved_nbytes(problem: TrafficProblem, solution: TrafficSolution) -> int:
    """What the solution costs: bytes loaded and stored, and the charges of `End.ALIVE`, in exact integers."""
    moves = [i for instant in (*solution.loads, *solution.stores) for i in instant]
    owed = [i for i, t in enumerate(problem.tensors) if t.ends is End.ALIVE and i not in solution.at_end]
    return sum(problem.tensors[i].nbytes for i in (*moves, *owed))


def check_traffic(problem: TrafficProblem, solution: TrafficSolution) -> list[str]:
    """Everything that is wrong with the solution; empty if nothing."""
    steps, tensors = problem.steps, problem.tensors
    if sorted(solution.order) != list(range(steps)) or len(solution.present) != steps:
        return [f"{len(solution.order)} operators and {len(solution.present)} states in {steps} steps"]
    if len(solution.loads) != steps + 1 or len(solution.stores) != steps + 1:
        return [f"moves at {len(solution.loads)} and {len(solution.stores)} instants of {steps + 1}"]
    wrong = [f"order {solution.order} is not {problem.order}"] if problem.order not in (None, solution.order) else []
    place = {o: t for t, o in enumerate(solution.order)}
    wrong += [f"operator {b} runs before {a}" for a, b in sorted(problem.before) if place[a] > place[b]]
    chip = {i for i, t in enumerate(tensors) if t.begins in (Begin.FAST, Begin.BOTH)}
    if problem.cyclic:
        chip |= {i for i in solution.at_end if tensors[i].begins is Begin.BELOW}
    below = {i for i, t in enumerate(tensors) if t.begins in (Begin.BELOW, Begin.BOTH)}
    half_made: set[int] = set()
    for t in range(steps + 1):
        wrong += [f"instant {t}: stores {i}, which is not on chip" for i in solution.stores[t] if i not in chip]
        below |= set(solution.stores[t])
        wrong += [f"instant {t}: loads {i}, which is not below" for i in solution.loads[t] if i not in below]
        chip |= set(solution.loads[t])
        if t == steps:
            break
        operator, state = problem.operators[solution.order[t]], set(solution.present[t])
        arrives = {i for i, tensor in enumerate(tensors) if t == 0 and tensor.begins is Begin.ARRIVES}
        needed = operator.touches | half_made | arrives
        wrong += [f"step {t}: {i} is needed and not on chip" for i in sorted(needed - state)]
        made = {i for i in operator.outputs if problem.writers[i][0] == solution.order[t]} | arrives
        wrong += [f"step {t}: {i} is on chip and came from nowhere" for i in sorted(state - chip - made)]
        room = sum(tensors[i].room for i in state)
        if room > problem.capacity_nbytes:
            wrong.append(f"step {t}: {room} bytes on chip, the capacity is {problem.capacity_nbytes}")
        chip = state
        below -= set(operator.outputs) | arrives
        for i in operator.outputs:
            (half_made.discard if problem.writers[i][-1] == solution.order[t] else half_made.add)(i)
    wrong += [f"{i} is on chip at the end and came from nowhere" for i in solution.at_end if i not in chip]
    for i, tensor in enumerate(tensors):
        fast = i in solution.at_end and (not steps or i in solution.present[-1])
        ends = {End.BELOW: i in below, End.FAST: fast, End.ALIVE: i in below or i in solution.at_end, End.FREE: True}
        if not ends[tensor.ends]:
            wrong.append(f"{i} must end {tensor.ends.value} and does not")
    return wrong + (_check_offsets(problem, solution) if problem.offsets else [])


def _check_offsets(problem: TrafficProblem, solution: TrafficSolution) -> list[str]:
    if solution.offsets is None:
        return ["no addresses"]
    wrong: list[str] = []
    before: dict[int, int] = {}
    states = zip(solution.present, solution.offsets, strict=True)
    at: list[dict[int, int]] = [dict(zip(present, offsets, strict=True)) for present, offsets in states]
    if problem.cyclic and at:
        held = [i for i in solution.at_end if problem.tensors[i].begins is Begin.BELOW]
        before = {i: at[-1][i] for i in held if i in at[-1]}
    for t, where in enumerate(at):
        for i, offset in where.items():
            tensor = problem.tensors[i]
            if offset < 0 or offset % tensor.alignment or offset + tensor.room > problem.capacity_nbytes:
                wrong.append(f"step {t}: {i} at {offset}, {tensor.room} bytes long, of {problem.capacity_nbytes}")
            if i in before and i not in solution.loads[t] and before[i] != offset:
                wrong.append(f"step {t}: {i} moved from {before[i]} to {offset}")
            wrong += [
                f"step {t}: {i} at {offset} and {j} at {other} share addresses"
                for j, other in where.items()
                if i < j
                and min(tensor.room, problem.tensors[j].room) > 0
                and offset < other + problem.tensors[j].room
                and other < offset + tensor.room
            ]
        before = where
    return wrong
