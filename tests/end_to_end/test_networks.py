"""Real networks, whole way: lowered, planned, checked, run inside the budget; bits as without one, values as ONNX
Runtime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_node, make_tensor_value_info

from tests.end_to_end.subject import (
    F32,
    Subject,
    check_at_budgets,
    varied,
)
from tests.models import ModelWriter, light_models, write_gpt, write_mlp
from tests.networks import randomised

QUICK = {"shufflenet", "squeezenet"}
"""The light networks that take less than some three seconds; the others are marked slow."""


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
