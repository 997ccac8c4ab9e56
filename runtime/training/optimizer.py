"""The optimizer of a planned step: updates as the plan calls them, on states that are wherever the plan has put them.

The user's optimizer object stays the user's: learning rates are read from it at every step, its `state_dict()` comes
out complete, `load_state_dict()` goes in, and after `close` it holds its states again. In between those states that the
plan places are not in it, and its own `step()` is refused.

A planned step updates each parameter as soon as its gradient is complete, inside the backward; where the plan clips by
the norm of all gradients, behind the last of them (`clipping`). Accumulation over several backwards, and skipping the
step where a gradient is not finite, cannot be had: for these plan without `optimizer`. Where a gradient was used up
stands what refuses to be read (`consumed`). A step that fails part of the way has updated the parameters whose updates
ran, and no others; their counts of steps say which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...ir.errors import ExecutionError, InputError, PlanMismatchError
from ...ir.graph import Graph
from ...ir.optimizer import refuse_wrapped
from ...ir.plan import Plan
from ...ir.program import Clip, TrainingProgram
from ..passes import PlanMemory
from .clipping import Clipping
from .consumed import mark, unmark
from .optimizer_states import PlacedStates, flat
from .placed_parameters import PlacedParameters
from .state_store import StateStore
from .trained import BoundUpdate, Trained, check_groups, find_trained
from .update_calls import new_step, run_update


class PlannedOptimizer:
    """`optimizer` as `program.optimizer` has it, for the parameters of `module`.

    Made in three steps: the constructor refuses what was not planned (PlanMismatchError, InputError) and changes
    nothing; `open_store` moves the states to disk; `bind` takes the memory in which the plan is executed. Then for each
    step `begin`, `update` for every update of the plan, and `end`, or `failed`. `clip`: how gradients are clipped, by
    default as planned.
    """

    def __init__(
        self,
        optimizer: Any,
        module: nn.Module,
        plan: Plan,
        graph: Graph,
        program: TrainingProgram,
        clip: Clip | None = None,
    ) -> None:
        refuse_wrapped(module)
        if program.optimizer is None:
            raise PlanMismatchError("the plan has no optimizer; plan with `optimizer`, or call its step() yourself")
        self.optimizer = optimizer
        self._planned = program.optimizer
        self._graph = graph
        check_groups(optimizer, self._planned)
        self._parameters = {p.name: p for p in find_trained(optimizer, module, plan, graph, self._planned)}
        self._of_operator = {b.update.operator: p for p in self._parameters.values() for b in p.updates}
        self._held = _held(optimizer)
        clip = clip or program.clip
        trained = {name: p.tensor for name, p in self._parameters.items()}
        self.clipping = None if clip is None else Clipping(clip, module, trained)
        self._placed = PlacedParameters(graph, program, module)
        self._started: set[str] = set()
        self._new: dict[str, dict[str, torch.Tensor]] = {}  # by parameter, states that its first update will give it
        self._hooks: list[Any] = []
        self._states: PlacedStates | None = None
        self._began = self._reached = 0  # instants of this step, and behind its last update

    def open_store(self, folder: Path | None = None) -> StateStore:
        """The home of the states and parameters that the plan places, in a nameless file in `folder` (by default the
        cache), with what optimizer and module hold of them; they hold them no longer. Zeros take no writing.

        Raises InputError for states that do not fit and where another planned step has this optimizer, ExecutionError
        where the disk has no room. The optimizer is then as it was, and parameters have the content that they had.
        """
        if any(isinstance(getattr(h, "__self__", None), PlannedOptimizer) for h in _step_hooks(self.optimizer)):
            raise InputError("another planned step has this optimizer; close that one first")
        parameters = list(self._parameters.values())
        self._find_started()
        states = PlacedStates(self._graph, parameters, self._placed, folder)
        try:
            for p in parameters:
                states.keep(p, self.optimizer.state.get(p.tensor) or {})
            self._placed.move(states.store, states.bring_home)
        except BaseException:
            self._placed.release()
            states.store.close()
            raise
        self._states = states
        self._forget()
        self._hooks = [
            self.optimizer.register_state_dict_pre_hook(self._before_state_dict),
            self.optimizer.register_state_dict_post_hook(self._after_state_dict),
            self.optimizer.register_load_state_dict_post_hook(self._after_load),
            self.optimizer.register_step_pre_hook(self._refuse_step),
        ]
        return states.store

    def bind(self, memory: PlanMemory) -> None:
        """States are from now on where `memory`, which is open and has been restarted, has them."""
        self._open_states().bind(memory)

    def close(self) -> None:
        """Give the states back to the optimizer, which is an ordinary one again; end memory and store. Again is
        allowed. Parameters that were placed keep their content in the file, which has no name and lasts as long as they
        do. Raises ExecutionError where the disk fails: the states are then lost."""
        if self._states is None:
            return
        states = self._states
        try:
            states.bring_home()
            states.unbind()  # its memory goes before the states take as much again
            self._before_state_dict()
        finally:
            states.unbind()
            self._placed.release()
            unmark(p.tensor for p in self._parameters.values())
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            self._states = None
            states.store.close()

    # A step.

    def begin(self) -> bool:
        """Before each step: the options are read and checked. True where the states were loaded anew, so that the
        passes of the memory are counted from the first one again.

        Raises PlanMismatchError for options that may not change, InputError where something awaits the gradients of
        single parameters, ExecutionError where the states are lost.
        """
        states = self._open_states()
        check_groups(self.optimizer, self._planned)
        states.store.check_whole()
        if _held(self.optimizer) != self._held:
            raise PlanMismatchError("the optimizer's groups hold other parameters than when it was planned; plan again")
        unmark(p.tensor for p in self._parameters.values())
        for p in self._parameters.values():
            p.check_gradient()
            p.next = 0
        if self.clipping is not None:
            self.clipping.begin()
        self._placed.begin()
        self._make_states()
        restarted = states.refill()
        self._began = self._reached = states.instant
        return restarted

    def updater(self, name: str) -> Callable[[torch.Tensor], None]:
        """What to call with the gradient of the parameter whose first name is `name`, at each of its updates."""
        p = self._parameters[name]

        def update(gradient: torch.Tensor) -> None:
            self.update(p.updates[p.next].update.operator, gradient)

        return update

    def update(self, operator: str, gradient: torch.Tensor) -> None:
        """The update that operator `operator` is, now that its step has come. `gradient` is that of all the parameter;
        it is not needed afterwards, unless the parameter has further updates in this step."""
        p = self._of_operator[operator]
        bound = p.updates[p.next]
        assert bound.update.operator == operator, (operator, bound.update.operator)
        group = self._group(p)
        first = p.name not in self._started
        kept = self._kept_states(p, first=first)
        step = kept.pop("step", None)
        parameter, gradient, states, in_blocks = _arrays(p, bound, gradient, kept)
        counted = run_update(
            self._planned.kind,
            group,
            parameter,
            gradient,
            states,
            step,
            first=first,
            in_blocks=in_blocks,
            scale=None if self.clipping is None else self.clipping.scale,
        )
        p.next += 1
        self._reached = self._began + bound.step + 1
        if p.next == len(p.updates):
            self._started.add(p.name)
            if counted is not None:
                self.optimizer.state[p.tensor]["step"] = counted

    def _group(self, p: Trained) -> dict[str, Any]:
        """The options of a parameter's group, as the plain loop has them: an eps that is not given Adafactor takes from
        the type of the first parameter that it updates, and keeps it for those of other types in the group."""
        group = self.optimizer.param_groups[p.group]
        if self._planned.kind != "Adafactor" or group["foreach"] or group["eps"][0] is not None:
            return group
        updated = {id(q.tensor) for q in self._parameters.values()}
        leading = next(q for q in group["params"] if id(q) in updated)
        return {**group, "eps": (torch.finfo(leading.dtype).eps, group["eps"][1])}

    def take_norm(self, operator: str, gradient: torch.Tensor) -> None:
        """Operator `operator` of the plan takes the norm of `gradient`, that of all of one parameter."""
        assert self.clipping is not None
        p = self._parameters[self.clipping.norms[operator]]
        if not _lies_as(gradient, p.layout):
            gradient = torch.empty_strided(tuple(gradient.shape), p.layout, dtype=gradient.dtype).copy_(gradient)
        self.clipping.take(operator, gradient)

    def take_factor(self) -> None:
        """All norms were taken."""
        assert self.clipping is not None
        self.clipping.finish()

    def end(self) -> None:
        """After each step: every update has run."""
        missing = [p.name for p in self._parameters.values() if p.next != len(p.updates)]
        assert not missing, f"{len(missing)} parameters were not updated, '{missing[0]}' among them"
        self._placed.rest()
        self.optimizer._opt_called = True  # what torch's schedulers look at before they count
        mark(((p.name, p.tensor) for p in self._parameters.values()), clipped=self.clipping is not None)

    def failed(self) -> None:
        """After a step that was not completed: all states go home, so that the next step starts from the last of them.

        Where the disk fails too they are lost, and `begin` says so.
        """
        if self._states is None:
            return
        try:
            self._states.bring_home(self._reached)
        except ExecutionError as error:
            self._states.store.spoil(f"they could not be stored after a step that failed ({error})")

    def _make_states(self) -> None:
        """The states that first updates of this step will need in memory. Made before the step: what an update
        allocates comes out of the plan's workspace. The optimizer has them from their update on, and not before."""
        for p in self._parameters.values():
            if p.name in self._started:
                self._new.pop(p.name, None)
                continue
            held, made = self.optimizer.state.get(p.tensor) or {}, self._new.setdefault(p.name, {})
            for key, shape in p.shapes.items():
                if key not in p.placed and key not in made and held.get(key) is None:
                    made[key] = torch.empty_strided(shape, p.strides(key), dtype=p.tensor.dtype).zero_()

    def _kept_states(self, p: Trained, *, first: bool) -> dict[str, torch.Tensor]:
        """What the optimizer itself holds of a parameter's states, new where it is missing; and its count of steps."""
        if self._planned.kind == "SGD" and len(p.placed) == len(p.shapes):
            return {}
        state = self.optimizer.state[p.tensor]
        if self._planned.kind != "SGD" and "step" not in state:
            state["step"] = new_step(self.optimizer.param_groups[p.group])
        for key, new in self._new.pop(p.name, {}).items() if first else ():
            if state.get(key) is None:
                state[key] = new
        return {key: state[key] for key in ("step", *p.shapes) if state.get(key) is not None}

    # The user's optimizer meanwhile.

    def _open_states(self) -> PlacedStates:
        if self._states is None:
            raise ExecutionError("this planned step has no states: it was closed, or not yet opened")
        return self._states

    def _find_started(self) -> None:
        """The parameters that have been updated before, by what the optimizer holds. Raises InputError."""
        self._started = set()
        for p in self._parameters.values():
            state = self.optimizer.state.get(p.tensor) or {}
            p.check_states(state)
            if any(state.get(key) is not None for key in p.shapes):
                self._started.add(p.name)

    def _forget(self) -> None:
        """Take the states that are placed out of the optimizer."""
        for p in self._parameters.values():
            state = self.optimizer.state.get(p.tensor)
            if state is not None:
                for key in p.placed:
                    state.pop(key, None)
                if not state:
                    del self.optimizer.state[p.tensor]

    def _before_state_dict(self, _: Any = None) -> None:
        """Put every state into the optimizer, as torch would have it there. ExecutionError where they are lost."""
        states = self._open_states()
        states.store.check_whole()
        for p in (p for p in self._parameters.values() if p.name in self._started and p.shapes):
            state = self.optimizer.state[p.tensor]
            found = {key: states.whole(p, key) if key in p.placed else state[key] for key in p.shapes}
            step = {"step": state["step"]} if "step" in state else {}
            state.clear()
            state.update(step | found)

    def _after_state_dict(self, _: Any, found: dict[str, Any]) -> dict[str, Any]:
        """Take them out again: what is returned keeps them."""
        found = {**found, "state": {number: dict(state) for number, state in found["state"].items()}}
        self._forget()
        return found

    def _after_load(self, _: Any) -> None:
        """What was loaded goes to its home; the arena follows before the next step."""
        self._find_started()
        self._open_states().replace_all(self.optimizer.state)
        self._forget()

    def _refuse_step(self, *_: Any) -> None:
        raise InputError(
            "this optimizer's updates are part of a planned step, which has run them; do not call its step(), or plan "
            "without `optimizer`"
        )


def _arrays(
    p: Trained, bound: BoundUpdate, gradient: torch.Tensor, kept: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], bool]:
    """Parameter, gradient and states of an update; as one-dimensional arrays, and True, where it may run in blocks."""
    tensor = p.tensor.detach() if bound.parameter is None else bound.parameter
    states, elements = {**kept, **bound.views}, bound.update.elements
    alike = _lies_as(gradient, tensor.stride())
    if not alike and (elements is not None or not p.in_blocks):
        # As in the plain loop, where a gradient takes the layout of its parameter.
        gradient, alike = torch.empty_like(tensor).copy_(gradient), True
    if not (p.in_blocks and alike):
        return tensor, gradient, states, False
    lo, hi = elements or (0, tensor.numel())
    if elements is None:
        states = {key: flat(state) for key, state in states.items()}
    return flat(tensor)[lo:hi], flat(gradient)[lo:hi], states, True


def _lies_as(tensor: torch.Tensor, strides: tuple[int, ...]) -> bool:
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), strides, strict=True))


def _held(optimizer: Any) -> list[list[int]]:
    """The parameters of each group, by identity."""
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def _step_hooks(optimizer: Any) -> Iterator[Any]:
    yield from getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
