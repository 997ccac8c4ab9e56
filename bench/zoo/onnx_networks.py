"""The light networks of the onnx package, as the planner lowers them from their files."""

from __future__ import annotations

from tensorstow.ir.graph import Graph

from ..common import network

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
"""Their names, as `bench.common.network` knows them."""


def light(name: str) -> Graph:
    """Light network `name` with random weights, lowered; batch 1, float32, workspace that of ONNX Runtime here."""
    from tensorstow.planner.onnx import lower_onnx

    return lower_onnx(network(name)).graph
