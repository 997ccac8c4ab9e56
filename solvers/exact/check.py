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
    wrong += [f"stores {i}, and nothing can be stored" for now in solution.stores for i in now if problem.one_way]
    wrong += [f"operator {b} runs before {a}" for a, b in sorted(problem.before) if place[a] > place[b]]
    chip = {i for i, t in enumerate(tensors) if t.begins in (Begin.FAST, Begin.BOTH)}
    chip |= {i for i in solution.at_end if problem.wraps(i)}
    below = {i for i, t in enumerate(tensors) if t.begins in (Begin.BELOW, Begin.BOTH)}
    below -= {i for i in below if problem.wraps(i) and not _left_below(problem, solution, i)}
    for t in range(steps + 1):
        wrong += [f"instant {t}: stores {i}, which is not on chip" for i in solution.stores[t] if i not in chip]
        below |= set(solution.stores[t])
        wrong += [f"instant {t}: loads {i}, which is not below" for i in solution.loads[t] if i not in below]
        chip |= set(solution.loads[t])
        if t == steps:
            break
        operator, state = problem.operators[solution.order[t]], set(solution.present[t])
        arrives = {i for i, tensor in enumerate(tensors) if t == 0 and tensor.begins is Begin.ARRIVES}
        needed = operator.touches | arrives
        wrong += [f"step {t}: {i} is needed and not on chip" for i in sorted(needed - state)]
        made = {i for i in operator.outputs if problem.maker(i) == solution.order[t]} | arrives
        wrong += [f"step {t}: {i} is on chip and came from nowhere" for i in sorted(state - chip - made)]
        room = sum(tensors[i].room for i in state)
        if room > problem.capacity_nbytes:
            wrong.append(f"step {t}: {room} bytes on chip, the capacity is {problem.capacity_nbytes}")
        chip = state
        below -= set(operator.outputs) | arrives
    wrong += [f"{i} is on chip at the end and came from nowhere" for i in solution.at_end if i not in chip]
    for i, tensor in enumerate(tensors):
        fast = i in solution.at_end and (not steps or i in solution.present[-1])
        somewhere = i in below or i in solution.at_end
        stored = somewhere if problem.wraps(i) else i in below
        ends = {End.BELOW: stored, End.FAST: fast, End.BOTH: stored and fast, End.ALIVE: somewhere, End.FREE: True}
        if not ends[tensor.ends]:
            wrong.append(f"{i} must end {tensor.ends.value} and does not")
    return wrong + (_check_offsets(problem, solution) if problem.offsets else [])


def _left_below(problem: TrafficProblem, solution: TrafficSolution, i: int) -> bool:
    """Whether a pass leaves a good copy of tensor i below: it was not changed, or stored after its last change."""
    last = max((t for t, o in enumerate(solution.order) if i in problem.operators[o].outputs), default=None)
    return last is None or any(i in solution.stores[t] for t in range(last + 1, len(solution.stores)))


def _check_offsets(problem: TrafficProblem, solution: TrafficSolution) -> list[str]:
    if solution.offsets is None:
        return ["no addresses"]
    wrong: list[str] = []
    before: dict[int, int] = {}
    states = zip(solution.present, solution.offsets, strict=True)
    at: list[dict[int, int]] = [dict(zip(present, offsets, strict=True)) for present, offsets in states]
    if problem.cyclic and at:
        held = [i for i in solution.at_end if problem.wraps(i)]
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
