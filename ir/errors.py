"""The errors a user may meet. Each carries the exit status that the command line gives it."""

from __future__ import annotations


class TensorstowError(Exception):
    """Base of every error that is about the user's input or machine, not about a bug of ours."""

    exit_status = 2


class InputError(TensorstowError):
    """A model, plan, profile or argument that cannot be used as it is."""


class PlanMismatchError(InputError):
    """A plan that does not belong to this model, machine or file content."""


class NotApplicableError(InputError):
    """A strategy that does not apply to this graph or machine: of another kind of network, or of more tiers."""


class InfeasibleError(TensorstowError):
    """Proven: nothing can be done inside the given capacity."""

    exit_status = 3

    def __init__(self, message: str, *, smallest_nbytes: int | None = None) -> None:
        super().__init__(message)
        self.smallest_nbytes = smallest_nbytes


class TimeLimitError(TensorstowError):
    """The time limit passed before there was any answer."""

    exit_status = 4


class ExecutionError(TensorstowError):
    """A run that could not be completed: a read error, too little memory, a store that was changed under it."""
