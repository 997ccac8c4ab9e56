"""Tests of runtime/onnx_executor.py: what goes wrong, what is refused, what is left behind."""

from __future__ import annotations

import errno
import gc
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.graph import Operator
from tensorstow.ir.plan import Plan
from tensorstow.runtime import memory
from tensorstow.runtime.onnx_executor import OnnxExecutor
from tensorstow.runtime.store import WeightStore

from .build import Net, machine, same_bits
from .plans import execute, feed, forked, mlp, spilling, streamed


def _descriptors() -> set[str]:
    """Open ones, without that of the listing itself and without what the collector would close."""
    gc.collect()
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}  # noqa: PTH208


@pytest.mark.parametrize("fault", ["eio", "end", "bit"])
def test_a_read_that_fails_ends_the_pass_and_not_the_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    net = mlp(tmp_path)
    read = os.preadv

    def faulty(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if threading.current_thread() is threading.main_thread():
            return read(descriptor, buffers, offset)
        if fault == "eio":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if fault == "end":
            return 0
        got = read(descriptor, buffers, offset)
        buffers[0][5] ^= 1
        return got

    message = {"eio": "Input/output error", "end": "gives no more bytes: wanted", "bit": "CRC-32 should be"}[fault]
    with execute(net, streamed(net)) as executor:
        for _ in range(2):
            with monkeypatch.context() as patch, pytest.raises(ExecutionError, match=message):
                patch.setattr(os, "preadv", faulty)
                executor.run(feed())
            executor.run(feed())
            assert same_bits(executor.run(feed()), net.reference(feed()))
            assert isinstance(executor.store, WeightStore)
            for loaded in executor.store._unchecked.values():  # pyright: ignore[reportPrivateUsage]
                loaded.add(0)


def test_a_full_disk_for_spilled_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = forked(tmp_path)
    write = os.pwritev

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with execute(net, spilling(net)) as executor:
        monkeypatch.setattr(os, "pwritev", full)
        with pytest.raises(ExecutionError, match=r"No space left on device.*free space"):
            executor.run(feed(1, (64, 48)))
        monkeypatch.setattr(os, "pwritev", write)
        assert same_bits(executor.run(feed(1, (64, 48))), net.reference(feed(1, (64, 48))))


def test_a_kernel_that_fails_is_named(tmp_path: Path) -> None:
    net = Net(tmp_path)
    net.input("x", "float32", (4, 2))
    net.input("i", "int64", (2,))
    net.activation("y", (2, 2), output=True)
    net.op("Gather", ["x", "i"], ["y"])
    inputs = {**feed(1, (4, 2)), "i:0": np.array([1, 3])}
    with execute(net, net.resident()) as executor:
        with pytest.raises(ExecutionError, match=r"operator 'Gather_0' \(Gather\) failed"):
            executor.run({**inputs, "i:0": np.array([1, 7])})
        assert same_bits(executor.run(inputs), net.reference(inputs))


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    net = forked(tmp_path)
    files = _descriptors()
    store = net.store()
    executor = OnnxExecutor(spilling(net), net.graph(), net.program(), store, machine(), scratch=tmp_path)
    calls = executor._calls  # pyright: ignore[reportPrivateUsage]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    calls[2], kept = (interrupt, *calls[2][1:]), calls[2]
    with pytest.raises(KeyboardInterrupt):
        executor.run(feed(1, (64, 48)))
    calls[2] = kept
    assert same_bits(executor.run(feed(1, (64, 48))), net.reference(feed(1, (64, 48))))
    executor.close()
    store.close()
    assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())
    assert _descriptors() <= files


def test_two_hundred_executors_leave_nothing_behind(tmp_path: Path) -> None:
    net = mlp(tmp_path, layers=2, width=64)
    graph, program, plan, inputs = net.graph(), net.program(), streamed(net, 2, 64), feed(1, (8, 64))
    expected = net.reference(inputs)

    def cycle() -> None:
        with net.store() as store, OnnxExecutor(plan, graph, program, store, machine()) as executor:
            assert same_bits(executor.run(inputs), expected)

    for _ in range(20):
        cycle()
    gc.collect()
    files, threads, nbytes = len(_descriptors()), threading.active_count(), memory.current_rss_nbytes()
    for _ in range(180):
        cycle()
    gc.collect()
    assert len(_descriptors()) <= files
    assert threading.active_count() == threads
    assert memory.current_rss_nbytes() - nbytes < 6 << 20


def test_a_forgotten_executor_is_closed(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    executor = execute(net, streamed(net))
    executor.run(feed())
    del executor
    gc.collect()
    assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())


def test_a_closed_executor_refuses(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    executor = execute(net, net.resident())
    executor.close()
    executor.close()
    for call in (lambda: executor.run(feed()), executor.load, executor.compute_only, executor.io_only):
        with pytest.raises(ExecutionError, match="closed"):
            call()
    with pytest.raises(ExecutionError, match="closed"):
        executor.profile(1)


def _refused(net: Net, plan: Plan) -> str:
    with pytest.raises((PlanMismatchError, InputError)) as caught:
        OnnxExecutor(plan, net.graph(), net.program(), net.store(), machine())
    assert not any(t.name.startswith("tensorstow") for t in threading.enumerate())
    return str(caught.value)


def test_plans_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    plan = streamed(net)
    stays, moves = plan.residencies, plan.transfers
    assert "needs bytes [0, 73728) of 'w0'" in _refused(net, replace(plan, residencies=stays[1:]))
    assert "whose arena has 4096" in _refused(net, replace(plan, arena_nbytes={"dram": 4096}))
    shifted = (replace(stays[0], offset=stays[0].offset + 4), *stays[1:])
    assert "in pieces at bases" in _refused(net, replace(plan, residencies=shifted))
    late = (*moves[2:], *moves[:2])
    assert "stands on ssd->dram behind" in _refused(net, replace(plan, transfers=late))
    outward = (replace(moves[0], origin="dram", target="ssd"), *moves[1:])
    assert "no step of the plan changes" in _refused(net, replace(plan, transfers=outward))
    assert "'gpu'" in _refused(net, replace(plan, steps=(replace(plan.steps[0], unit="gpu"), *plan.steps[1:])))
    x = next(i for i, r in enumerate(stays) if r.storage == "x")
    crooked = (*stays[:x], replace(stays[x], offset=stays[x].offset + 4), *stays[x + 1 :])
    assert "multiple of its alignment" in _refused(net, replace(plan, residencies=crooked))
    spill = spilling(forked(tmp_path / ".."))
    assert "graph does" in _refused(net, spill)


def test_loads_of_what_was_never_stored_are_refused(tmp_path: Path) -> None:
    net = forked(tmp_path)
    plan = spilling(net)
    assert "of which 0 were stored" in _refused(net, replace(plan, transfers=plan.transfers[1:]))


def test_kernels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    first = net.operators[0]
    net.operators[0] = replace(first, inputs=first.inputs[:1])
    assert "has 1 inputs, its kernel 2" in _refused(net, net.resident())
    net.operators[0] = first
    net.kernels[first.id] = net.kernels[net.operators[1].id]
    assert "has 2 inputs, its kernel 1" in _refused(net, net.resident())
    del net.kernels[first.id]
    assert "no kernel for operator" in _refused(net, net.resident())
    unknown = Operator("odd", "NoSuchOperator", (), ())
    net.operators[0] = unknown
    net.kernels["odd"] = "d"
    graph = helper.make_graph([helper.make_node("NoSuchOperator", [], ["y"])], "k", [], [net.infos["h0"]])
    net.models["d"] = helper.make_model(graph, ir_version=10).SerializeToString()
    assert "ONNX Runtime has no kernel for operator 'odd' (NoSuchOperator)" in _refused(net, net.resident())
