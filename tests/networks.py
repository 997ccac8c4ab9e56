"""The light networks with random weights: onnx ships them with one value everywhere, which hides wrong bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

EXTERNAL_NBYTES = 1024


def randomised(source: Path, path: Path, seed: int = 0) -> Path:
    """Write the network at `source` to `path` with normal weights, scaled so that activations keep their size."""
    model = onnx.load(str(source))
    generator = np.random.default_rng(seed)
    uses = {name: (node, i) for node in model.graph.node for i, name in enumerate(node.input)}
    kept: list[NodeProto] = []
    made: list[TensorProto] = []
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(n) for n in shapes[node.input[0]])
        array = _values(generator, shape, *uses[node.output[0]])
        made.append(numpy_helper.from_array(array, node.output[0]))
    used = {name for node in kept for name in node.input}
    rest = [t for t in model.graph.initializer if t.name in used]
    inputs = [i for i in model.graph.input if i.name not in shapes]
    del model.graph.node[:], model.graph.initializer[:], model.graph.input[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend([*rest, *made])
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # initializers need not be inputs from here on
    Path(f"{path}.data").unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=EXTERNAL_NBYTES,
    )
    return path


def _values(generator: np.random.Generator, shape: tuple[int, ...], node: NodeProto, place: int) -> NDArray[np.float32]:
    if node.op_type == "BatchNormalization":  # scale, shift, mean, variance
        centre, spread = ((1.0, 0.1), (0.0, 0.1), (0.0, 0.1), (1.0, 0.1))[place - 1]
        return np.abs(generator.normal(centre, spread, shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    spread = (2.0 / fan_in) ** 0.5 if len(shape) > 1 else 0.1
    return (generator.standard_normal(shape, dtype=np.float32) * np.float32(spread)).astype(np.float32)
