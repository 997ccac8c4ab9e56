"""The joint forward and backward graph of a module, by PyTorch's own compiler.

Its semi-private API is met here, in `joint_described`, `joint_loss`, `joint_shells` and `joint_tracing`, and nowhere
else.

Dynamo traces the module into a graph, AOT autograd makes the graph of forward and backward together, and hands it to a
partition function. Ours takes it: to keep it (`capture_joint`, nothing runs) or to have forward and backward built from
it (`compile_joint`). Both go the same way, so that what was planned is what is executed; `Joint.key` holds this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, NoReturn, cast

import torch
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit, TorchDynamoException
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ...ir.errors import InputError
from .joint_described import described, names_of, sources_of
from .joint_graph import Joint, Sections
from .joint_shells import States, gives, shells
from .joint_tracing import forget_tracing, quiet, tracing
from .refusals import explained, refuse_lost_writes
from .stand_ins import on_cpu


def capture_joint(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> Joint:
    """The joint graph of `loss(module(*args, **kwargs))`, or of the module alone. Nothing is computed.

    The module is taken in train or eval mode as it is, its tensors and the arguments may be on 'cpu' or on 'meta'
    (they are then traced as if on the CPU). Raises InputError, which names the user's line, where no single graph of
    it exists: a graph break, control flow that depends on values, an error in the model.
    """

    class CapturedError(Exception):
        """Ends the compilation once the graph is known."""

    found: list[Joint] = []

    def keep(joint: Joint) -> NoReturn:
        found.append(joint)
        raise CapturedError

    with on_cpu(module, (tuple(args), dict(kwargs or {}))) as (cpu_args, cpu_kwargs):
        step = _traced(module, loss, _backend(module, lambda: (cpu_args, cpu_kwargs), keep))
        try:
            with torch.enable_grad(), tracing(), quiet():
                step(*cpu_args, **cpu_kwargs)
        except BackendCompilerFailed as error:
            if not (isinstance(error.inner_exception, _BuildError) and found):
                raise explained(error, module) from error
        except TorchDynamoException as error:
            raise explained(error, module) from error
        finally:
            forget_tracing()
    if not found:
        raise InputError(
            f"{type(module).__name__} has nothing to train: no parameter or input of it requires a gradient that its "
            "result depends on; set `requires_grad`, or plan with mode='inference'"
        )
    return replace(found[0], training=module.training)


def compile_joint(
    module: nn.Module,
    build: Callable[[Joint], Sections],
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> Callable[..., Any]:
    """`loss(module(...))` as a callable whose forward and backward are what `build` makes of the joint graph.

    `build` is called at the first call, and again for every other form of call (shapes, dtypes, modes, values of the
    module that Python reads): it refuses the forms it has no plan for, and its error reaches the caller. Where forms
    are many a warning says so. Autograd holds a token in place of the state: a state whose result was dropped is
    dropped too. The callable raises what `build`, forward and backward raise, and InputError as `capture_joint` does.
    """
    called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    forms = known = 0

    def counted(joint: Joint) -> Sections:
        nonlocal forms
        sections = build(joint)
        forms += 1
        return sections

    def traced() -> Callable[..., Any]:
        return _traced(module, loss, _backend(module, lambda: called[-1], counted))

    step = traced()

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal step, known
        called.append((args, kwargs))
        try:
            with tracing():
                try:
                    result = step(*args, **kwargs)
                except FailOnRecompileLimitHit:  # before anything ran; the forms up to now are forgotten
                    step = traced()
                    result = step(*args, **kwargs)
            if forms > known:
                known = forms
                forget_tracing()
                _warn_of_many(module, forms)
            return result
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, _BuildError):
                raise error.inner_exception.error from None
            raise explained(error, module) from error
        except TorchDynamoException as error:
            raise explained(error, module) from error
        finally:
            called.pop()

    return run


_MANY = 8
"""Forms of a call behind which PyTorch itself would trace no more."""


def _warn_of_many(module: nn.Module, forms: int) -> None:
    if forms == _MANY + 1:
        warnings.warn(
            f"{type(module).__name__} was traced {forms} times: Python values that it reads (a counter, a factor) are "
            "constants of its graph, and a step in which one is new is traced anew, which may take seconds; keep what "
            "changes from step to step in buffers or other tensors",
            stacklevel=4,
        )


def _traced(
    module: nn.Module, loss: Callable[[Any], torch.Tensor] | None, backend: Callable[..., Any]
) -> Callable[..., Any]:
    """The step under `torch.compile`. Dynamo keeps what it compiled with the code object, so each step has its own."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    def with_loss(*args: Any, **kwargs: Any) -> Any:
        assert loss is not None
        return loss(module(*args, **kwargs))

    chosen = cast("FunctionType", plain if loss is None else with_loss)
    own = FunctionType(chosen.__code__.replace(), chosen.__globals__, "training_step", None, chosen.__closure__)
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)


def _backend(
    module: nn.Module,
    called: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
    build: Callable[[Joint], Sections],
) -> Callable[..., Any]:
    """What dynamo hands its graph to."""

    def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def nothing_to_train(*_: object) -> NoReturn:
            raise InputError(
                f"{type(module).__name__} has nothing to train: its result depends on no parameter or input that "
                "requires a gradient; set `requires_grad`, or plan with mode='inference'"
            )

        refuse_lost_writes(graph, type(module).__name__)
        sources = sources_of(graph, names_of(module, *called()))
        return _compiled(graph, inputs, sources, lambda joint: _called_by_us(build, joint), nothing_to_train)

    return backend


def compiled_graph(
    graph: fx.GraphModule, inputs: Sequence[Any], build: Callable[[Joint], Sections]
) -> Callable[..., Any]:
    """What a backend of `torch.compile` gives for dynamo's `graph`: forward and backward as `build` makes them of the
    joint graph; the graph as it is where nothing needs a gradient. Parameters have the names that dynamo gives them.

    `build` is called once for each graph. InputError where dynamo has cut the graph off at a line that it cannot trace.
    """

    def as_it_is(inner: fx.GraphModule, _: object) -> Callable[..., Any]:
        return make_boxed_func(inner.forward)

    why = getattr(graph, "compile_subgraph_reason", None)
    if why is not None and why.graph_break:
        at = why.user_stack[-1] if why.user_stack else None
        where = f" at {at.filename}:{at.lineno}: {at.line}" if at is not None else ""
        raise InputError(
            f"the model is cut in two{where}, and no plan knows what the other part holds; keep Python that depends on "
            "values out of what is compiled, or use ts.plan and ts.apply, which run such a model by hooks"
        )
    refuse_lost_writes(graph, "the model")
    names: dict[int, tuple[Any, tuple[str, ...]]] = {}
    for node in graph.graph.find_nodes(op="placeholder"):
        given = node.meta.get("grapharg")
        if given is not None and isinstance(given.example, torch.Tensor):
            kind = "parameter" if isinstance(given.example, nn.Parameter) else "input"
            names[id(given.example)] = kind, (str(given.source.name),)
    return _compiled(graph, inputs, sources_of(graph, names), build, as_it_is)


def _compiled(
    graph: fx.GraphModule,
    inputs: Sequence[Any],
    sources: list[tuple[Any, tuple[str, ...]]],
    build: Callable[[Joint], Sections],
    without_gradients: Callable[..., Any],
) -> Callable[..., Any]:
    """`graph` by AOT autograd, with what `build` makes of the joint graph as forward and backward."""
    built: list[States] = []

    def partition(
        joint: fx.GraphModule, inputs: object, *, num_fwd_outputs: int, **_: object
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        ours = described(joint, num_fwd_outputs, sources)
        with unset_fake_temporarily():  # what is built is real
            built.append(States(ours, build(ours)))
        return shells(ours, built[0].saved)

    compiler = aot_autograd(
        fw_compiler=gives(lambda given: built[0].run_forward(given)),
        bw_compiler=gives(lambda given: built[0].run_backward(given)),
        inference_compiler=without_gradients,
        partition_fn=partition,
        decompositions={},
    )
    compiled = compiler(graph, inputs)

    def run(*given: Any) -> Any:
        results = compiled(*given)
        if built:
            built[0].hand_over(results)
        return results

    return run


class _BuildError(Exception):
    """Carries what `build` raised through dynamo, which would dress it up."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _called_by_us(build: Callable[[Joint], Sections], joint: Joint) -> Sections:
    try:
        return build(joint)
    except Exception as error:
        raise _BuildError(error) from error
