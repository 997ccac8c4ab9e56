"""Small graphs with programs and hand-made plans, for the tests of the runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.ir.program import BlobSource, Program
from tensorstow.runtime.store import WeightStore
from tensorstow.runtime.values import dense_nbytes

Array = np.ndarray[Any, Any]
OPSET, IR_VERSION = 21, 10
IDENTITY: dict[str, Any] = {"engine": "test", "files": []}


def machine(chunk: int = 1 << 20, channel: str | None = None) -> Machine:
    """Memory and a disk; one link each way, of one channel or of their own."""
    return Machine(
        "test",
        (Tier("dram", TierKind.DRAM, 1 << 32), Tier("ssd", TierKind.SSD, 1 << 40, alignment=4096)),
        (
            Link("ssd", "dram", 1e9, chunk_nbytes=chunk, channel=channel),
            Link("dram", "ssd", 1e9, chunk_nbytes=chunk, channel=channel),
        ),
        (Unit("cpu", "dram", (("float32", 1e11),), 1e10),),
    )


@dataclass
class Net:
    """A network under construction, with the plain model beside it as reference."""

    folder: Path
    storages: list[Storage] = field(default_factory=list[Storage])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    infos: dict[str, onnx.ValueInfoProto] = field(default_factory=dict[str, onnx.ValueInfoProto])
    operators: list[Operator] = field(default_factory=list[Operator])
    kernels: dict[str, str] = field(default_factory=dict[str, str])
    models: dict[str, bytes] = field(default_factory=dict[str, bytes])
    blobs: list[BlobSource] = field(default_factory=list[BlobSource])
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    weights: list[onnx.TensorProto] = field(default_factory=list[onnx.TensorProto])
    inputs: list[str] = field(default_factory=list[str])
    outputs: list[str] = field(default_factory=list[str])

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], kind: StorageKind) -> None:
        """A tensor with a storage of its own."""
        nbytes = dense_nbytes(dtype, shape)
        homed = kind in (StorageKind.WEIGHT, StorageKind.CONSTANT)
        self.storages.append(Storage(name, nbytes, kind, blob=name if homed else None))
        self.tensors[name] = Tensor(name, dtype, shape, name, nbytes)
        element = helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
        self.infos[name] = helper.make_tensor_value_info(name, element, shape)

    def view(self, name: str, of: str, shape: tuple[int, ...], offset: int = 0) -> None:
        """A tensor that is other bytes of the storage of `of`."""
        base = self.tensors[of]
        nbytes = dense_nbytes(base.dtype, shape)
        self.tensors[name] = Tensor(name, base.dtype, shape, base.storage, nbytes, offset)
        element = self.infos[of].type.tensor_type.elem_type
        self.infos[name] = helper.make_tensor_value_info(name, element, shape)

    def opaque(self, name: str, info: onnx.ValueInfoProto) -> None:
        """A tensor outside the plan."""
        self.tensors[name] = Tensor(name, "opaque", None, None, 0)
        self.infos[name] = info

    def input(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """A graph input."""
        self.tensor(name, dtype, shape, StorageKind.INPUT)
        self.inputs.append(name)

    def weight(self, name: str, value: Array) -> None:
        """A homed storage whose bytes stand in a file."""
        self.tensor(name, value.dtype.name, value.shape, StorageKind.WEIGHT)
        path = self.folder / f"{name}.bin"
        path.write_bytes(value.tobytes())
        self.blobs.append(BlobSource(name, value.nbytes, value.dtype.name, value.shape, path=str(path)))
        self.weights.append(onnx.numpy_helper.from_array(value, name))

    def activation(self, name: str, shape: tuple[int, ...], dtype: str = "float32", *, output: bool = False) -> None:
        """What an operator makes."""
        self.tensor(name, dtype, shape, StorageKind.OUTPUT if output else StorageKind.ACTIVATION)
        if output:
            self.outputs.append(name)

    def op(self, op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """An operator with its one-node kernel."""
        name = f"{op_type}_{len(self.operators)}"
        node = helper.make_node(op_type, inputs, outputs, name, **attributes)
        distinct = list(dict.fromkeys(inputs))
        graph = helper.make_graph([node], "k", [self.infos[t] for t in distinct], [self.infos[t] for t in outputs])
        opset = [helper.make_opsetid("", OPSET)]
        content = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
        digest = hashlib.sha256(content).hexdigest()
        self.models[digest] = content
        self.kernels[name] = digest
        self.operators.append(Operator(name, op_type, tuple(distinct), tuple(outputs)))
        self.nodes.append(node)

    def graph(self) -> Graph:
        """The graph so far."""
        parts = (tuple(self.storages), tuple(self.tensors.values()), tuple(self.operators))
        return Graph("net", *parts, tuple(self.inputs), tuple(self.outputs))

    def program(self) -> Program:
        """The program so far; the user's names are the tensors' with a mark."""
        names = tuple(f"{n}:0" for n in self.inputs), tuple(f"{n}:0" for n in self.outputs)
        return Program("test", dict(self.kernels), dict(self.models), tuple(self.blobs), *names)

    def store(self) -> WeightStore:
        """Its weights, repacked."""
        program = self.program()
        return WeightStore.open_or_build(program, identity=IDENTITY, folder=self.folder / "stores" / "net")

    def reference(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """What a plain session of the whole model computes."""
        import onnxruntime as ort

        from tensorstow.runtime.kernels import session_options, use_threads

        use_threads(None)
        infos = [self.infos[n] for n in self.inputs], [self.infos[n] for n in self.outputs]
        graph = helper.make_graph(self.nodes, "net", *infos, self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        session = ort.InferenceSession(model.SerializeToString(), session_options())
        results = session.run(self.outputs, {n.removesuffix(":0"): v for n, v in feeds.items()})
        return {f"{n}:0": v for n, v in zip(self.outputs, results, strict=True)}

    def resident(self, **changes: Any) -> Plan:
        """Everything in memory all the time."""
        total, at = len(self.operators), 0
        stays: list[Residency] = []
        for s in self.storages:
            if s.nbytes and total:
                stays.append(Residency(s.id, "dram", 0, s.nbytes, at, 0, total))
                at += -(-s.nbytes // 4096) * 4096
        return self.plan(stays, [], at, **changes)

    def plan(self, stays: list[Residency], moves: list[Transfer], arena: int, **changes: Any) -> Plan:
        """A plan of these residencies and transfers, the operators in their order."""
        parts: dict[str, Any] = {
            "graph": "",
            "machine": "",
            "strategy": "test",
            "mode": "inference",
            "home_tier": "ssd",
            "steps": tuple(Step(o.id, "cpu", 1000) for o in self.operators),
            "residencies": tuple(stays),
            "transfers": tuple(moves),
            "capacity_nbytes": {"dram": arena},
            "arena_nbytes": {"dram": arena},
            "workspace_nbytes": {"dram": 0},
            "certificate": Certificate("test", 1.0, 1.0, 1.0, "none"),
        }
        return Plan(**{**parts, **changes})


def same_bits(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether both hold the same arrays to the bit."""
    return found.keys() == expected.keys() and all(
        found[n].dtype == expected[n].dtype
        and found[n].shape == expected[n].shape
        and found[n].tobytes() == expected[n].tobytes()
        for n in expected
    )
