"""Repeated layers are found where they are, and not where layers differ."""

from __future__ import annotations

from bench.repeats import Repeat, longest_repeat
from bench.scale_graphs import inference, training


def test_layers_that_are_alike_are_one_repeat() -> None:
    found = longest_repeat(inference(300, alike=True))
    assert found.period == 10
    assert found.count * found.period >= 280


def test_forward_and_backward_differ_and_only_one_of_them_repeats() -> None:
    found = longest_repeat(training(320, alike=True))
    assert found.period in {3, 5}
    assert found.count <= 320 // 8


def test_layers_that_differ_hardly_repeat() -> None:
    found = longest_repeat(inference(300))
    assert found.count * found.period <= 150


def test_nothing_repeats_in_a_graph_of_one_layer() -> None:
    graph = inference(10, alike=True)
    assert longest_repeat(graph) == Repeat(0, len(graph.operators), 1)
