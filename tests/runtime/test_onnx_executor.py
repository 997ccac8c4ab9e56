"""Tests of runtime/onnx_executor.py: plans by hand, run and compared to the bit with a plain session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from tensorstow.ir.errors import InputError
from tensorstow.ir.plan import Residency, Transfer
from tensorstow.runtime.onnx_executor import OnnxExecutor

from .build import Net, machine, same_bits
from .plans import execute, feed, forked, mlp, spilling, streamed


def test_everything_resident(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    with execute(net, net.resident()) as executor:
        assert executor.load() == sum(b.nbytes for b in net.blobs)
        for seed in range(3):
            assert same_bits(executor.run(feed(seed)), net.reference(feed(seed)))
        assert executor.stats.read_nbytes == 0
        assert executor.stats.wait_ns == {}
        assert executor.stats.seconds > 0


@pytest.mark.parametrize("chunk", [4096, 1 << 20])
def test_weights_streamed_in_parts_one_across_the_end_of_the_pass(tmp_path: Path, chunk: int) -> None:
    net = mlp(tmp_path)
    with execute(net, streamed(net), machine(chunk)) as executor:
        assert executor.load() == net.blobs[0].nbytes
        for seed in range(6):
            assert same_bits(executor.run(feed(seed)), net.reference(feed(seed)))
        executor.run(feed())
        assert executor.stats.written_nbytes == 0
        assert set(executor.stats.wait_ns) <= {"ssd->dram"}


@pytest.mark.parametrize("shape", [(64, 48), (64, 47), (3, 5)])  # whole blocks, a part of one, less than one
@pytest.mark.parametrize("channel", [None, "nvme"])
def test_an_activation_is_spilled_and_comes_back(tmp_path: Path, shape: tuple[int, ...], channel: str | None) -> None:
    net = forked(tmp_path, shape)
    padded = 64 * -(-net.storages[0].nbytes // 64)
    plan = spilling(net, lo=4096 if shape == (64, 48) else 0)
    size = net.storages[0].nbytes
    moved = tuple(replace(r, offset=r.offset // size * padded + r.lo) for r in plan.residencies)
    plan = replace(plan, residencies=moved, arena_nbytes={"dram": 3 * padded})
    plan = replace(plan, capacity_nbytes={"dram": 3 * padded})
    before = {p.name for p in tmp_path.iterdir()}
    with execute(net, plan, machine(4096, channel)) as executor:
        for seed in range(4):
            inputs = feed(seed, shape)
            assert same_bits(executor.run(inputs), net.reference(inputs))
        assert (executor.stats.read_nbytes, executor.stats.written_nbytes) == (size, size)
        assert {p.name for p in tmp_path.iterdir()} - before <= {"stores"}  # the scratch file has no name
        executor.compute_only()
        executor.io_only()
        assert same_bits(executor.run(feed(9, shape)), net.reference(feed(9, shape)))


def test_controls_and_profile_leave_the_results_alone(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    with execute(net, streamed(net)) as executor:
        assert executor.compute_only() > 0  # on zeros, before any pass
        assert executor.io_only() > 0
        assert same_bits(executor.run(feed()), net.reference(feed()))
        profile = executor.profile(3)
        assert list(profile.operator_ns) == [o.id for o in net.operators]
        assert all(ns > 0 for ns in profile.operator_ns.values())
        assert profile.lane_bytes_per_s["ssd->dram"] > 0
        executor.tracing = True
        assert same_bits(executor.run(feed(2)), net.reference(feed(2)))
        lanes = {e.lane for e in executor.stats.events}
        assert {"cpu", "ssd->dram"} <= lanes <= {"cpu", "ssd->dram", "wait"}
        assert all(e.start_ns <= e.end_ns for e in executor.stats.events)
        executor.tracing = False
        assert executor.run(feed()).keys() == {"a3:0"}
        assert executor.stats.events == ()


def test_compute_only_moves_what_kernels_must_not_find_stale(tmp_path: Path) -> None:
    """Indices and a table share an address: stale indices would make Gather fail."""
    net = Net(tmp_path)
    net.input("x", "float32", (4, 64))
    net.weight("i", np.arange(4, dtype=np.int64)[::-1].copy())
    net.weight("w", np.full((4, 64), 1e30, np.float32))
    for name in ("g", "h"):
        net.activation(name, (4, 64))
    net.activation("y", (4, 64), output=True)
    net.op("Gather", ["x", "i"], ["g"])
    net.op("Relu", ["g"], ["h"])
    net.op("Add", ["h", "w"], ["y"])
    stays = [
        Residency("i", "dram", 0, 32, 0, 0, 1),
        Residency("w", "dram", 0, 1024, 0, 1, 3),
        Residency("x", "dram", 0, 1024, 4096, 0, 3),
        *(Residency(n, "dram", 0, 1024, 4096 * k, 0, 3) for k, n in ((2, "g"), (3, "h"), (4, "y"))),
    ]
    moves = [Transfer("i", 0, 32, "ssd", "dram", 0, 0), Transfer("w", 0, 1024, "ssd", "dram", 1, 2)]
    with execute(net, net.plan(stays, moves, 5 * 4096)) as executor:
        for seed in (1, 2):
            inputs = feed(seed, (4, 64))
            assert same_bits(executor.run(inputs), net.reference(inputs))
            assert executor.compute_only() > 0


DTYPES = ["float16", "float64", "int8", "uint16", "int64", "bool", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_goes_in_and_out(tmp_path: Path, dtype: str) -> None:
    net = Net(tmp_path)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    value = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(kind)
    net.input("x", dtype, (3, 5))
    net.activation("y", (3, 5), dtype, output=True)
    net.op("Identity", ["x"], ["y"])
    with execute(net, net.resident()) as executor:
        assert same_bits(executor.run({"x:0": value}), {"y:0": value})


def test_packed_types_go_in(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.input("x", "int4", (3, 5))
    net.input("s", "float32", ())
    net.activation("y", (3, 5), output=True)
    net.op("DequantizeLinear", ["x", "s"], ["y"])
    value = np.arange(-8, 7).reshape(3, 5)
    with execute(net, net.resident()) as executor:
        found = executor.run({"x:0": value.astype(ml_dtypes.int4), "s:0": np.array(2, np.float32)})
        assert found["y:0"].tolist() == (2.0 * value).tolist()


def test_tensors_without_bytes_and_scalars(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.input("x", "float32", (0, 4))
    net.input("s", "float32", ())
    net.activation("e", (0, 4), output=True)
    net.activation("y", (), output=True)
    net.op("Relu", ["x"], ["e"])
    net.op("Neg", ["s"], ["y"])
    inputs = {"x:0": np.zeros((0, 4), np.float32), "s:0": np.array(3, np.float32)}
    with execute(net, net.resident()) as executor:
        assert same_bits(executor.run(inputs), net.reference(inputs))


def test_views_share_their_storage(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.input("x", "float32", (4, 8))
    net.view("row", "x", (8,), offset=3 * 32)
    net.activation("y", (8,), output=True)
    net.op("Neg", ["row"], ["y"])
    net.view("flat", "x", (32,))
    net.outputs.append("flat")
    inputs = feed(1, (4, 8))
    with execute(net, net.resident()) as executor:
        found = executor.run(inputs)
        assert found["y:0"].tolist() == (-inputs["x:0"][3]).tolist()
        assert found["flat:0"].tolist() == inputs["x:0"].reshape(-1).tolist()


def test_a_graph_without_operators(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.input("x", "float32", (2, 3))
    net.weight("w", np.arange(6, dtype=np.float32))
    net.view("y", "x", (6,))
    net.outputs += ["y", "w"]
    inputs = feed(1, (2, 3))
    with OnnxExecutor(net.resident(), net.graph(), net.program(), net.store(), machine()) as executor:
        for _ in range(2):
            found = executor.run(inputs)
            assert found["y:0"].tolist() == inputs["x:0"].reshape(-1).tolist()
            assert found["w:0"].tolist() == list(range(6))
        assert executor.load() == 0
        assert executor.compute_only() >= 0
        assert executor.io_only() >= 0


def test_values_without_a_place(tmp_path: Path) -> None:
    """Shapes that depend on data, sequences, strings, and a placed result of an opaque operator."""
    net = Net(tmp_path)
    net.input("x", "float32", (6,))
    net.inputs.append("s")
    net.opaque("s", helper.make_tensor_value_info("s", TensorProto.STRING, [None]))
    net.opaque("n", helper.make_tensor_value_info("n", TensorProto.INT64, [1, None]))
    net.opaque("q", helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, None))
    net.opaque("t", helper.make_tensor_value_info("t", TensorProto.STRING, [None]))
    net.activation("l", (), "int64", output=True)
    net.activation("y", (6,), output=True)
    net.op("NonZero", ["x"], ["n"])
    net.op("SequenceConstruct", ["x", "x"], ["q"])
    net.op("SequenceLength", ["q"], ["l"])
    net.op("Neg", ["x"], ["y"])
    net.op("Identity", ["s"], ["t"])
    net.outputs += ["n", "q", "t"]
    with execute(net, net.resident()) as executor:
        for seed in (1, 2):
            value = np.maximum(np.random.default_rng(seed).standard_normal(6, dtype=np.float32), 0)
            found = executor.run({"x:0": value, "s:0": np.array(["a", "bc"], object)})
            assert found["n:0"].tolist() == [np.nonzero(value)[0].tolist()]
            assert [v.tolist() for v in found["q:0"]] == [value.tolist()] * 2
            assert found["t:0"].tolist() == ["a", "bc"]
            assert (found["l:0"].item(), found["y:0"].tolist()) == (2, (-value).tolist())
        executor.profile(2)


def test_optionals_and_sequences_as_inputs(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.inputs += ["o", "q"]
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    net.opaque("o", helper.make_value_info("o", helper.make_optional_type_proto(element)))
    net.opaque("q", helper.make_tensor_sequence_value_info("q", TensorProto.INT64, None))
    net.activation("h", (), "bool", output=True)
    net.activation("l", (), "int64", output=True)
    net.op("OptionalHasElement", ["o"], ["h"])
    net.op("SequenceLength", ["q"], ["l"])
    with execute(net, net.resident()) as executor:
        assert not executor.run({"o:0": None, "q:0": []})["h:0"]
        found = executor.run({"o:0": np.zeros(2, np.float32), "q:0": [np.arange(3), np.arange(2)]})
        assert (found["h:0"].item(), found["l:0"].item()) == (True, 2)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    with execute(net, net.resident()) as executor:
        with pytest.raises(InputError, match=r"misses the inputs \['x:0'\]"):
            executor.run({})
        with pytest.raises(InputError, match=r"does not know the inputs \['z'\]; its inputs: \['x:0'\]"):
            executor.run({**feed(), "z": np.zeros(1)})
        with pytest.raises(InputError, match="shape"):
            executor.run(feed(1, (8, 191)))
        assert same_bits(executor.run(feed()), net.reference(feed()))
