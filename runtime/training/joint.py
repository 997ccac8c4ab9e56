"""The joint forward and backward graph of a module, by PyTorch's own compiler. All of its semi-private API is here.

Dynamo traces the module into a graph, AOT autograd makes the graph of forward and backward together, and hands it to a
partition function. Ours takes it: to keep it (`capture_joint`, nothing runs) or to have forward and backward built from
it (`compile_joint`). Both go the same way, so that what was planned is what is executed; `Joint.key` holds this.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from types import FunctionType
from typing import Any, Literal, NoReturn, TypeAlias, cast

import torch
from torch import fx, nn
from torch._dynamo import config as dynamo_config
from torch._dynamo import guards
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._functorch._aot_autograd import descriptors
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils import _pytree as pytree

from ...ir.errors import InputError
from ..memory import trim_heap
from .refusals import explained
from .stand_ins import on_cpu

Gradients: TypeAlias = "list[torch.Tensor | None]"


@dataclass(frozen=True, slots=True)
class Sections:
    """What is built from a joint graph.

    `forward(primals)` clears the list that it is given, and returns the forward's outputs and a state.
    `backward(state, tangents)` clears the list as well, and returns a gradient or None for each primal. `read` names
    the placeholders whose tensors the backward reads again: one that was written in place in between is an error.
    """

    forward: Callable[[list[Any]], tuple[list[Any], object]]
    backward: Callable[[object, list[Any]], Gradients]
    read: frozenset[str]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What the placeholder `node` of a joint graph stands for.

    `names` are the qualified names of a parameter or buffer (several where it is tied), and the path of an input, as
    "args[0]['ids']"; a 'constant' is a tensor that is held elsewhere, under the name that dynamo gives it. A 'tangent'
    is the gradient of forward output `output`.
    """

    node: str
    kind: Literal["parameter", "buffer", "input", "constant", "tangent"]
    names: tuple[str, ...] = ()
    output: int | None = None


@dataclass(frozen=True)
class Joint:
    """Forward and backward of a module as one graph of ATen calls.

    The graph's results are `forward_outputs` values of the forward, then one per placeholder that is no tangent: its
    gradient, or None. `updates` maps positions among the forward's outputs to the placeholder whose new value they are
    (the running mean of a batch norm, say): it is copied there after the forward. The remaining outputs are the
    module's result (or the loss), flat.
    """

    module: fx.GraphModule
    forward_outputs: int
    placeholders: tuple[Placeholder, ...]
    updates: Mapping[int, str] = field(default_factory=dict[int, str])

    @cached_property
    def primals(self) -> tuple[Placeholder, ...]:
        """The placeholders that are no tangents, in order: what the forward is called with."""
        return tuple(p for p in self.placeholders if p.kind != "tangent")

    @cached_property
    def outputs(self) -> tuple[fx.Node | None, ...]:
        """The nodes of the graph's results: of the forward, then the gradients."""
        (results,) = self.module.graph.output_node().args
        return tuple(cast("Sequence[fx.Node | None]", results))

    @cached_property
    def gradients(self) -> dict[str, fx.Node]:
        """The node of the gradient of each placeholder that has one."""
        found = zip(self.primals, self.outputs[self.forward_outputs :], strict=True)
        return {p.node: node for p, node in found if node is not None}

    @cached_property
    def key(self) -> str:
        """Digest of all that decides what is computed: operators, arguments, shapes, dtypes, names, torch's version."""
        return hashlib.sha256("\n".join(_lines(self)).encode()).hexdigest()


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
            with torch.enable_grad(), _tracing(), _quiet():
                step(*cpu_args, **cpu_kwargs)
        except BackendCompilerFailed as error:
            if not (isinstance(error.inner_exception, _BuildError) and found):
                raise explained(error, module) from error
        except TorchDynamoException as error:
            raise explained(error, module) from error
        finally:
            _forget_tracing()
    if not found:
        raise InputError(
            f"{type(module).__name__} has nothing to train: no parameter or input of it requires a gradient that its "
            "result depends on; set `requires_grad`, or plan with mode='inference'"
        )
    return found[0]


def compile_joint(
    module: nn.Module,
    build: Callable[[Joint], Sections],
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> Callable[..., Any]:
    """`loss(module(...))` as a callable whose forward and backward are what `build` makes of the joint graph.

    `build` is called at the first call, and again for every other form of call (shapes, dtypes, modes): it refuses the
    forms it has no plan for, and its error reaches the caller. Autograd holds a token in place of the state: a state
    whose result was dropped is dropped too. The callable raises what `build`, forward and backward raise, and
    InputError as `capture_joint` does.
    """
    called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    compiled = False
    step = _traced(module, loss, _backend(module, lambda: called[-1], build))

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        called.append((args, kwargs))
        try:
            if compiled:
                return step(*args, **kwargs)
            with _tracing():
                result = step(*args, **kwargs)
            compiled = True
            _forget_tracing()
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


def _forget_tracing() -> None:
    """Give back what tracing and compiling took and nobody needs: cycles of objects, and the heap that they lay in."""
    gc.collect()
    trim_heap()


def graph_is_retained() -> bool:
    """Inside a backward: whether it runs with `retain_graph=True`, so that it may come again."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())  # pyright: ignore


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

        sources = _sources(graph, _names(module, *called()))
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
    names: dict[int, tuple[Any, tuple[str, ...]]] = {}
    for node in graph.graph.find_nodes(op="placeholder"):
        given = node.meta.get("grapharg")
        if given is not None and isinstance(given.example, torch.Tensor):
            kind = "parameter" if isinstance(given.example, nn.Parameter) else "input"
            names[id(given.example)] = kind, (str(given.source.name),)
    return _compiled(graph, inputs, _sources(graph, names), build, as_it_is)


def _compiled(
    graph: fx.GraphModule,
    inputs: Sequence[Any],
    sources: list[tuple[Any, tuple[str, ...]]],
    build: Callable[[Joint], Sections],
    without_gradients: Callable[..., Any],
) -> Callable[..., Any]:
    """`graph` by AOT autograd, with what `build` makes of the joint graph as forward and backward."""
    built: list[_States] = []

    def partition(
        joint: fx.GraphModule, inputs: object, *, num_fwd_outputs: int, **_: object
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        described = _described(joint, num_fwd_outputs, sources)
        with unset_fake_temporarily():  # what is built is real
            built.append(_States(described, build(described)))
        return _shells(described, built[0].saved)

    compiler = aot_autograd(
        fw_compiler=_gives(lambda given: built[0].run_forward(given)),
        bw_compiler=_gives(lambda given: built[0].run_backward(given)),
        inference_compiler=without_gradients,
        partition_fn=partition,
        decompositions={},
    )
    return compiler(graph, inputs)


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


class _States:
    """Runs forward and backward, and hands autograd a token in place of the state between them."""

    def __init__(self, joint: Joint, sections: Sections) -> None:
        self.sections = sections
        self.saved = [i for i, p in enumerate(joint.primals) if p.node in sections.read]
        self._next = count()
        self._held: dict[int, object] = {}

    def run_forward(self, primals: list[Any]) -> list[Any]:
        saved = [primals[i] for i in self.saved]
        outputs, state = self.sections.forward(primals)
        number = next(self._next)
        token = torch.tensor([number])
        self._held[number] = state
        weakref.finalize(token, self._held.pop, number, None)
        return [*outputs, token, *saved]

    def run_backward(self, arguments: list[Any]) -> Gradients:
        token, tangents = arguments[0], arguments[1 + len(self.saved) :]
        arguments.clear()
        return self.sections.backward(self._held[int(token)], tangents)


def _gives(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """A compiler whose result is `function`, marked as one that clears its list of arguments, so that no one holds
    them any longer."""

    def boxed(arguments: list[Any]) -> Any:
        return function(arguments)

    def compiler(*_: object) -> Callable[[list[Any]], Any]:
        return boxed

    boxed.__dict__["_boxed_call"] = True
    return compiler


def _shells(joint: Joint, saved: Sequence[int]) -> tuple[fx.GraphModule, fx.GraphModule]:
    """A forward and a backward graph that have the results of ours, and compute nothing: AOT reads their form only."""
    nodes = {n.name: n for n in joint.module.graph.find_nodes(op="placeholder")}
    fake = next(n.meta["val"].fake_mode for n in nodes.values() if isinstance(n.meta.get("val"), torch.Tensor))
    with fake:
        token_value = torch.empty(1, dtype=torch.int64)
    forward, backward = fx.Graph(), fx.Graph()
    given = [_copy(forward.placeholder(p.node), nodes[p.node]) for p in joint.primals]
    # Without a value in its meta it is not taken for a buffer that the backward may overwrite.
    token = forward.call_function(torch.ops.aten.empty.memory_format, ([1],))
    results = [_stand_in(forward, node) for node in joint.outputs[: joint.forward_outputs]]
    forward.output((*results, token, *(given[i] for i in saved)))
    held = backward.placeholder("token")
    held.meta["val"] = token_value
    for p in (*(joint.primals[i] for i in saved), *(p for p in joint.placeholders if p.kind == "tangent")):
        _copy(backward.placeholder(p.node), nodes[p.node])
    backward.output(tuple(_stand_in(backward, node) for node in joint.outputs[joint.forward_outputs :]))
    return fx.GraphModule(nn.Module(), forward), fx.GraphModule(nn.Module(), backward)


def _copy(new: fx.Node, old: fx.Node) -> fx.Node:
    new.meta.update(old.meta)
    return new


def _stand_in(graph: fx.Graph, node: fx.Node | None) -> fx.Node | None:
    """A node of `graph` with the form of `node`."""
    if not isinstance(node, fx.Node):
        return node
    return _copy(graph.call_function(torch.ops.aten.empty.memory_format, ([0],)), node)


def _names(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, tuple[Any, tuple[str, ...]]]:
    """By the identity of a tensor: its kind and its names."""
    found: dict[int, tuple[str, list[str]]] = {}
    for kind, named in (
        ("parameter", module.named_parameters(remove_duplicate=False)),
        ("buffer", module.named_buffers(remove_duplicate=False)),
        ("input", _leaves({"args": args, "kwargs": kwargs})),
    ):
        for name, value in named:
            found.setdefault(id(value), (kind, []))[1].append(name)
    return {i: (kind, tuple(names)) for i, (kind, names) in found.items()}


def _leaves(nest: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for path, leaf in pytree.tree_flatten_with_path(nest)[0]:
        if isinstance(leaf, torch.Tensor):
            yield path[0].key + pytree.keystr(path[1:]), leaf  # pyright: ignore[reportAttributeAccessIssue]


def _sources(graph: fx.GraphModule, names: dict[int, tuple[Any, tuple[str, ...]]]) -> list[tuple[Any, tuple[str, ...]]]:
    """What each placeholder of dynamo's graph is, by the tensor that it was traced with."""
    found: list[tuple[Any, tuple[str, ...]]] = []
    for node in graph.graph.find_nodes(op="placeholder"):
        given = node.meta.get("grapharg")
        if given is None or not isinstance(given.example, torch.Tensor):
            raise InputError(
                f"the module's graph takes '{node.name}', which is no tensor; a training plan takes tensors of fixed "
                "shapes, pass other things as constants"
            )
        found.append(names.get(id(given.example), ("constant", (str(given.source.name),))))
    return found


def _described(joint: fx.GraphModule, forward_outputs: int, sources: list[tuple[Any, tuple[str, ...]]]) -> Joint:
    _slim(joint)
    output = joint.graph.output_node()
    results: list[Any] = output.meta["desc"]
    position = {described: i for i, described in enumerate(results[:forward_outputs])}
    placeholders: list[Placeholder] = []
    node_of: dict[Any, str] = {}
    for node in joint.graph.find_nodes(op="placeholder"):
        what = node.meta["desc"]
        node_of[what] = node.name
        if isinstance(what, descriptors.PlainAOTInput):
            placeholders.append(Placeholder(node.name, *sources[what.idx]))
        elif isinstance(what, descriptors.TangentAOTInput) and what.output in position:
            placeholders.append(Placeholder(node.name, "tangent", (), position[what.output]))
        else:
            raise InputError(
                f"the module's graph takes '{node.name}' ({what.expr()}): inputs that are views of one another and are "
                "written in place, or tensor subclasses, have no training plan; clone them before the call"
            )
    updates = {
        i: node_of[described.mutated_input]
        for i, described in enumerate(results[:forward_outputs])
        if isinstance(described, descriptors.InputMutationAOTOutput)
    }
    return Joint(joint, forward_outputs, tuple(placeholders), updates)


def _slim(joint: fx.GraphModule) -> None:
    """Leave out what tracing wrote to each node for whoever reads it (stacks, sources): it is most of a graph's bytes,
    and a step holds its graph as long as it lives."""
    for node in joint.graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val", "desc") if key in node.meta}


def _lines(joint: Joint) -> Iterator[str]:
    """What the key is a digest of: a line for each node. Devices are left out: 'meta' stands for the CPU."""
    yield f"torch {torch.__version__}"
    for p in joint.placeholders:
        yield f"{p.node} {p.kind} {p.names} {p.output}"
    for node in joint.module.graph.nodes:
        yield f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} {_form(node.meta.get('val'))}"
    yield f"{joint.forward_outputs} {sorted(joint.updates.items())}"


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.requires_grad}"
    if isinstance(value, (tuple, list)):
        return " ".join(map(_form, cast("list[Any]", value)))
    return repr(value)


_LOGGED = ("debug", "info", "warning", "warn", "error", "critical", "exception", "log")


@contextmanager
def _tracing() -> Generator[None]:
    """Dynamo's settings. What a module logs is no reason against a graph of it; it is not logged in planned steps."""
    methods = {f for name, f in vars(logging.Logger).items() if name.startswith(_LOGGED) and callable(f)}
    ignored = dynamo_config.ignore_logging_functions | methods
    with dynamo_config.patch(suppress_errors=False, ignore_logging_functions=ignored), _guards_untimed():
        yield


@contextmanager
def _guards_untimed() -> Generator[None]:
    """Without the time that PyTorch takes of its guards, for a line of its log: it writes 32 MiB before, to empty the
    caches, and that would be the peak of many a process that trains."""
    timed = getattr(guards, _TIMES_GUARDS, None)
    if timed is None:  # another version
        yield
        return
    setattr(guards, _TIMES_GUARDS, _no_time)
    try:
        yield
    finally:
        setattr(guards, _TIMES_GUARDS, timed)


_TIMES_GUARDS = "profile_guard_manager"


def _no_time(*_: object) -> float:
    return 0.0


@contextmanager
def _quiet() -> Generator[None]:
    """Without the traceback that tracing prints for an error in the model before it raises it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
