"""Real networks, whole way: lowered, planned, checked, run inside the budget; bits as without one, values as ONNX
Runtime's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from tensorstow.execute import random_inputs
from tensorstow.ir.check import check
from tensorstow.ir.errors import NotApplicableError
from tensorstow.ir.files import PlanFile, read_plan, write_plan
from tensorstow.ir.machine import Machine
from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import Lowered, lower_onnx, model_source
from tensorstow.planner.strategies import strategy_names
from tensorstow.planner.tile import smallest_budget, tile
from tensorstow.verify import RELATIVE_TOLERANCE
from tensorstow.executors import open_executor
from tests.conftest import host_machine
from tests.models import ModelWriter, light_models, write_cnn, write_gpt, write_mlp
from tests.networks import randomised

Arrays = dict[str, NDArray[Any]]
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
TIME_LIMIT_S = 2.0
QUICK = {"shufflenet", "squeezenet"}
"""The light networks that take less than some three seconds; the others are marked slow."""


class Subject:
    """A model with its references: our executor with everything resident and nothing split, and ONNX Runtime."""

    def __init__(self, path: Path, dims: dict[str, int] | None = None, inputs: Arrays | None = None) -> None:
        self.path = path
        self.lowered: Lowered = lower_onnx(path, dims=dims or {})
        self.source = model_source(path, dims or {})
        self.machine: Machine = host_machine()
        resident = self.file(self.lowered, self.machine, "resident")
        self.peak: int = resident.plan.certificate.peak_nbytes.get("dram", 0)
        self.inputs = random_inputs(resident) if inputs is None else inputs
        self.exact = self.run(resident)

    def file(self, lowered: Lowered, machine: Machine, strategy: str) -> PlanFile:
        plan = plan_graph(lowered.graph, machine, strategy=strategy, time_limit_s=TIME_LIMIT_S)
        assert not check(plan, lowered.graph, machine)
        return PlanFile(plan, lowered.graph, machine, lowered.program, self.source, 0)

    def plan(self, nbytes: int, strategy: str = "stow") -> PlanFile:
        """A plan within `nbytes` of DRAM."""
        machine = self.machine.with_capacity({"dram": nbytes})
        file = self.file(tile(self.lowered, machine), machine, strategy)
        certificate = file.plan.certificate
        assert certificate.peak_nbytes.get("dram", 0) <= nbytes
        assert certificate.bound_s <= certificate.simulated_s * (1 + 1e-6)
        return file

    def smallest(self) -> int:
        return smallest_budget(self.lowered, self.machine)

    def run(self, file: PlanFile, passes: int = 1) -> Arrays:
        with open_executor(file) as executor:
            outputs = [executor.run(self.inputs) for _ in range(passes)]
            for again in outputs[1:]:
                assert_equal_bits(again, outputs[0])
        return outputs[0]

    def check_exact(self, file: PlanFile, passes: int = 2) -> None:
        """The run of `file` has the bits of the unconstrained one, in this pass and in the next."""
        assert_equal_bits(self.run(file, passes), self.exact)

    def check_close(self) -> None:
        """The unconstrained run has the values of a whole-model session."""
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        outputs = cast("list[NDArray[Any]]", session.run(None, self.inputs))
        for info, expected in zip(session.get_outputs(), outputs, strict=True):
            found = self.exact[info.name]
            assert found.shape == expected.shape
            assert found.dtype == expected.dtype
            if expected.dtype.kind == "f":
                largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
                np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE_TOLERANCE * largest)
            else:
                np.testing.assert_array_equal(found, expected)


def assert_equal_bits(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), f"output '{name}' differs"


def varied(arrays: Arrays) -> bool:
    """Whether outputs could show a wrong byte: more than a few values, none of them wild."""
    return all(np.isfinite(a).all() and len(np.unique(a)) > 3 for a in arrays.values() if a.dtype.kind == "f")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in sorted(light_models())]
)
def test_light_networks(name: str, tmp_path: Path) -> None:
    subject = Subject(without_softmax(randomised(light_models()[name], tmp_path / f"{name}.onnx")))
    assert varied(subject.exact)
    subject.check_close()
    half = subject.plan(subject.peak // 2)
    subject.check_exact(half)
    smallest = subject.smallest()
    assert smallest < subject.peak // 2
    tight = subject.plan(smallest)
    subject.check_exact(tight)
    assert tight.plan.certificate.simulated_s >= half.plan.certificate.simulated_s


def without_softmax(path: Path) -> Path:
    """The network with what its last Softmax reads as output: random weights saturate it, which would hide errors."""
    model = onnx.load(str(path), load_external_data=False)
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        model.graph.output[0].name = last.input[0]
        del model.graph.node[-1]
    path.write_bytes(model.SerializeToString())
    return path


def budgets(subject: Subject) -> list[int]:
    smallest = subject.smallest()
    return [(subject.peak + smallest) // 2, smallest]


def check_at_budgets(subject: Subject) -> None:
    subject.check_close()
    for nbytes in budgets(subject):
        subject.check_exact(subject.plan(nbytes))


@pytest.mark.parametrize("tied", [False, True])
def test_a_gpt(tmp_path: Path, tied: bool) -> None:
    path = write_gpt(
        tmp_path / "gpt.onnx", layers=12, width=96, heads=4, vocabulary=4000, sequence=32, external=True, tied=tied
    )
    tokens = np.random.default_rng(0).integers(0, 4000, (1, 32))
    subject = Subject(path, inputs={"tokens": tokens})
    assert varied(subject.exact)
    check_at_budgets(subject)


@pytest.mark.slow
def test_a_gpt_of_real_width(tmp_path: Path) -> None:
    path = write_gpt(tmp_path / "gpt.onnx", external=True)
    tokens = np.random.default_rng(0).integers(0, 50257, (1, 128))
    subject = Subject(path, inputs={"tokens": tokens})
    subject.check_close()
    for nbytes in (subject.peak // 2, subject.smallest()):
        subject.check_exact(subject.plan(nbytes))


@pytest.mark.parametrize("external", [False, True])
def test_an_mlp_whose_weights_are_far_larger_than_memory(tmp_path: Path, external: bool) -> None:
    subject = Subject(write_mlp(tmp_path / "mlp.onnx", width=768, layers=5, rows=3, external=external))
    assert subject.smallest() < 768 * 768 * 4 // 2
    check_at_budgets(subject)


@pytest.mark.slow
def test_an_mlp_of_two_gigabytes(tmp_path: Path) -> None:
    subject = Subject(write_mlp(tmp_path / "mlp.onnx", width=8192, layers=8))
    assert subject.lowered.graph.nbytes > 2 << 30
    for nbytes in (1 << 30, subject.smallest()):
        subject.check_exact(subject.plan(nbytes), passes=1)


KEEPS_WEIGHTS = {"resident", "checkpoint-sqrt", "checkpoint-mincut", "capuchin", "memo", "checkmate", "poet"}


@pytest.mark.parametrize("strategy", strategy_names())
def test_every_strategy_runs_with_equal_bits(cnn: Subject, mlp: Subject, strategy: str) -> None:
    for subject in (cnn, mlp):
        nbytes = subject.peak * 5 // 4 if strategy in KEEPS_WEIGHTS else (subject.peak + subject.smallest()) // 2
        try:
            file = subject.plan(nbytes, strategy)
        except NotApplicableError as error:  # what these two networks have not
            assert strategy == "memo", str(error)
            pytest.skip(str(error))
        assert file.plan.strategy.startswith(strategy)
        subject.check_exact(file, passes=3)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(write_cnn(tmp_path_factory.mktemp("cnn") / "cnn.onnx"))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(write_mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx", width=512, layers=6))


def test_a_plan_file_runs_like_the_plan_it_was_made_from(cnn: Subject, tmp_path: Path) -> None:
    file = cnn.plan((cnn.peak + cnn.smallest()) // 2)
    write_plan(file, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again == file
    write_plan(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    cnn.check_exact(again)


# Activations larger than the budget leaves


def write_unet(path: Path, *, size: int = 48, depth: int = 5, width: int = 16) -> Path:
    """Down and up again, every level's activation of `width * size**2 * 4` bytes kept for its way up.

    Only the middle is of half the size: what waits is far more than what any operator touches.
    """
    w = ModelWriter(path, external=False)
    skips: list[str] = []
    x = _convolved(w, "in", "image", 3, width)
    for level in range(depth):
        skips.append(x)
        x = _convolved(w, f"down{level}", x, width, width)
        if level == depth - 1:
            x = w.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    scales = w.constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = w.node("Resize", [_convolved(w, "middle", x, width, width), "", scales], mode="nearest")
    for level in reversed(range(depth)):
        x = w.node("Tanh", [w.node("Add", [x, skips[level]])])
        x = _convolved(w, f"up{level}", x, width, width)
    w.nodes.append(make_node("Conv", [x, w.weight("out.w", (1, width, 1, 1), 0.25)], ["mask"], name="out"))
    image = make_tensor_value_info("image", F32, [1, 3, size, size])
    return w.save("unet", [image], [make_tensor_value_info("mask", F32, [1, 1, size, size])])


def _convolved(w: ModelWriter, name: str, x: str, inputs: int, outputs: int) -> str:
    kernel = w.weight(f"{name}.w", (outputs, inputs, 3, 3), (2 / (9 * inputs)) ** 0.5)
    return w.node("Relu", [w.node("Conv", [x, kernel], pads=[1] * 4)])


def test_activations_are_spilled_where_they_do_not_fit(tmp_path: Path) -> None:
    subject = Subject(write_unet(tmp_path / "unet.onnx"))
    assert varied(subject.exact)
    subject.check_close()
    file = subject.plan(subject.smallest())
    spilled = [t for t in file.plan.transfers if t.target == "ssd"]
    assert spilled, "nothing is spilled"
    assert file.plan.certificate.moved_nbytes["dram->ssd"] == sum(t.nbytes for t in spilled)
    subject.check_exact(file, passes=3)


# Forms of models


def small(
    path: Path,
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, Any]],
    outputs: Mapping[str, tuple[int, Any]],
    tensors: list[Any] | None = None,
) -> Path:
    given, made = ([make_tensor_value_info(n, t, s) for n, (t, s) in v.items()] for v in (inputs, outputs))
    graph = make_graph(nodes, path.stem, given, made, tensors or [])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def test_several_outputs_some_of_them_used_on(tmp_path: Path) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((64, 64), np.float32), "w")
    nodes = [
        make_node("MatMul", ["x", "w"], ["a"]),
        make_node("Split", ["a"], ["b", "c"], axis=1),
        make_node("Tanh", ["b"], ["d"]),
        make_node("TopK", ["c", "k"], ["values", "indices"], axis=1),
        make_node("Identity", ["x"], ["same"]),
    ]
    outputs = {"a": (F32, [4, 64]), "d": (F32, [4, 32]), "values": (F32, [4, 3]), "indices": (I64, [4, 3])}
    path = small(
        tmp_path / "m.onnx",
        nodes,
        {"x": (F32, [4, 64])},
        {**outputs, "same": (F32, [4, 64])},
        [w, from_array(np.array([3]), "k")],
    )
    check_at_budgets(Subject(path))


def test_optional_inputs_that_are_left_out(tmp_path: Path) -> None:
    nodes = [
        make_node("Clip", ["x", "", "high"], ["a"]),
        make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        make_node("Pad", ["b", "pads", "", "axes"], ["y"]),
    ]
    tensors = [
        from_array(np.array(0.5, np.float32), "high"),
        from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        from_array(np.array([1, 2]), "pads"),
        from_array(np.array([3]), "axes"),
    ]
    graph = make_graph(
        nodes,
        "optional",
        [make_tensor_value_info("x", F32, [1, 2, 8, 8])],
        [make_tensor_value_info("y", F32, [1, 2, 16, 19])],
        tensors,
    )
    path = tmp_path / "m.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8), path)
    check_at_budgets(Subject(path))


@pytest.mark.parametrize("flag", [True, False])
def test_branches(tmp_path: Path, flag: bool) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((32, 32), np.float32), "w")
    branches = {
        name: make_graph(
            [make_node("MatMul", ["a", "w"], ["t"]), make_node(op, ["t"], [name])],
            name,
            [],
            [make_tensor_value_info(name, F32, [2, 32])],
        )
        for name, op in (("yes", "Tanh"), ("no", "Neg"))
    }
    nodes = [
        make_node("Relu", ["x"], ["a"]),
        make_node("If", ["flag"], ["b"], then_branch=branches["yes"], else_branch=branches["no"]),
        make_node("Add", ["b", "a"], ["y"]),
    ]
    inputs = {"x": (F32, [2, 32]), "flag": (TensorProto.BOOL, [])}
    path = small(tmp_path / "m.onnx", nodes, inputs, {"y": (F32, [2, 32])}, [w])
    x = np.random.default_rng(1).standard_normal((2, 32), np.float32)
    check_at_budgets(Subject(path, inputs={"x": x, "flag": np.array(flag)}))


def test_a_loop(tmp_path: Path) -> None:
    body = make_graph(
        [
            make_node("Identity", ["go"], ["go_on"]),
            make_node("MatMul", ["state", "w"], ["t"]),
            make_node("Tanh", ["t"], ["state_out"]),
        ],
        "body",
        [
            make_tensor_value_info("i", I64, []),
            make_tensor_value_info("go", TensorProto.BOOL, []),
            make_tensor_value_info("state", F32, [2, 32]),
        ],
        [make_tensor_value_info("go_on", TensorProto.BOOL, []), make_tensor_value_info("state_out", F32, [2, 32])],
    )
    nodes = [
        make_node("Relu", ["x"], ["a"]),
        make_node("Loop", ["times", "", "a"], ["b"], body=body),
        make_node("Neg", ["b"], ["y"]),
    ]
    w = from_array(np.random.default_rng(0).standard_normal((32, 32), np.float32), "w")
    times = from_array(np.array(5), "times")
    path = small(tmp_path / "m.onnx", nodes, {"x": (F32, [2, 32])}, {"y": (F32, [2, 32])}, [w, times])
    check_at_budgets(Subject(path))


def test_dimensions_that_are_set(tmp_path: Path) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((64, 512), np.float32), "w")
    nodes = [make_node("MatMul", ["x", "w"], ["a"]), make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0)]
    inputs = {"x": (F32, ["batch", "time", 64])}
    path = small(tmp_path / "m.onnx", nodes, inputs, {"y": (F32, ["batch", 512])}, [w])
    one, more = (Subject(path, dims={"batch": batch, "time": steps}) for batch, steps in ((1, 1), (3, 5)))
    assert one.exact["y"].shape == (1, 512)
    assert more.exact["y"].shape == (3, 512)
    one.check_close()
    check_at_budgets(more)


@pytest.mark.parametrize("op", ["Relu", "Identity", None])
def test_models_of_one_operator_or_none(tmp_path: Path, op: str | None) -> None:
    nodes = [] if op is None else [make_node(op, ["x"], ["y"])]
    name = "x" if op is None else "y"
    path = small(tmp_path / "m.onnx", nodes, {"x": (F32, [3, 5])}, {name: (F32, [3, 5])})
    subject = Subject(path)
    subject.check_close()
    subject.check_exact(subject.plan(max(subject.peak, 4096)))


def test_a_weight_that_is_an_output(tmp_path: Path) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((128, 128), np.float32), "w")
    nodes = [make_node("MatMul", ["x", "w"], ["y"]), make_node("Identity", ["w"], ["copy"])]
    outputs = {"y": (F32, [1, 128]), "copy": (F32, [128, 128])}
    check_at_budgets(Subject(small(tmp_path / "m.onnx", nodes, {"x": (F32, [1, 128])}, outputs, [w])))


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    nodes = [make_node("Concat", ["x", "none"], ["y"], axis=0), make_node("ReduceSum", ["x"], ["sum"], keepdims=0)]
    none = from_array(np.zeros((0, 4), np.float32), "none")
    outputs = {"y": (F32, [2, 4]), "sum": (F32, [])}
    check_at_budgets(Subject(small(tmp_path / "m.onnx", nodes, {"x": (F32, [2, 4])}, outputs, [none])))


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.BOOL])
def test_other_types_of_elements(tmp_path: Path, dtype: int) -> None:
    nodes = [make_node("Transpose", ["x"], ["a"], perm=[1, 0]), make_node("Concat", ["a", "a"], ["y"], axis=1)]
    path = small(tmp_path / "m.onnx", nodes, {"x": (dtype, [6, 4])}, {"y": (dtype, [4, 12])})
    check_at_budgets(Subject(path))


def test_more_memory_is_never_slower(mlp: Subject) -> None:
    smallest = mlp.smallest()
    points = [smallest + share * (mlp.peak - smallest) // 3 for share in range(4)]
    times = [mlp.plan(nbytes).plan.certificate.simulated_s for nbytes in points]
    for less, more in pairwise(times):
        assert more <= less * 1.02


def test_inputs_change_between_passes(cnn: Subject) -> None:
    """Nothing of one pass is left for the next: A, B, A gives A's bits again."""
    file = cnn.plan((cnn.peak + cnn.smallest()) // 2)
    other: Arrays = {n: -a for n, a in cnn.inputs.items()}
    with open_executor(file) as executor:
        first, second, third = (executor.run(i) for i in (cnn.inputs, other, cnn.inputs))
    assert_equal_bits(first, cnn.exact)
    assert_equal_bits(third, cnn.exact)
    assert any(second[n].tobytes() != first[n].tobytes() for n in first)


def test_threads_are_those_of_the_machine(cnn: Subject, check_threads: Callable[[], int]) -> None:
    with open_executor(replace(cnn.plan(cnn.peak), fixed_nbytes=1)) as executor:
        assert executor.threads == check_threads()


@pytest.fixture
def check_threads() -> Callable[[], int]:
    from tensorstow.ir.threads import physical_cores

    return physical_cores
