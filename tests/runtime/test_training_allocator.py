"""Where results land: planned addresses, a workspace of bounded size, and everything else as before."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.errors import ExecutionError, InputError
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.training import allocator_build
from tensorstow.runtime.training.allocator import (
    CopyRegion,
    NativeRegion,
    Slot,
    install,
    open_region,
    uninstall,
)
from tensorstow.runtime.training.allocator_build import NativeUnavailableError

KIB, MIB = 1 << 10, 1 << 20
PLANNED, WORKSPACE = 32 * MIB, 16 * MIB
ROOT = Path(__file__).parents[2]
Operator = Callable[[], "torch.Tensor | tuple[torch.Tensor, ...]"]


def memory(nbytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, nbytes))


def native(workspace: int = WORKSPACE, *, alignment: int = 64, smallest: int = 64 * KIB) -> NativeRegion:
    region = open_region(
        memory(PLANNED),
        memory(workspace) if workspace else None,
        alignment=alignment,
        smallest_nbytes=smallest,
        native=True,
    )
    assert isinstance(region, NativeRegion)
    return region


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def region() -> Iterator[NativeRegion]:
    opened = native()
    yield opened
    opened.close()


def tensors(result: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Those with bytes of their own: where no gradient is asked for, operators give none or an empty one."""
    found = (result,) if isinstance(result, torch.Tensor) else tuple(result)
    return tuple(r for r in found if isinstance(cast(object, r), torch.Tensor) and storage_nbytes(r))


def storage_nbytes(result: torch.Tensor) -> int:
    return result.untyped_storage().nbytes()


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a": torch.randn(192, 320),
        "b": torch.randn(320, 192),
        "q": torch.randn(2, 4, 64, 32),
        "x": torch.randn(4, 16, 32, 32),
        "k": torch.randn(32, 16, 3, 3),
        "g": torch.randn(4, 32, 32, 32),
    }


def operators(v: dict[str, torch.Tensor]) -> dict[str, Operator]:
    aten = torch.ops.aten
    a, b, q, x, k, g = (v[name] for name in "abqxkg")
    return {
        "mm": lambda: aten.mm.default(a, b),
        "layer_norm": lambda: aten.native_layer_norm.default(a, [320], None, None, 1e-5),
        "sdpa": lambda: aten._scaled_dot_product_flash_attention_for_cpu.default(q, q, q, 0.0, True),
        "convolution": lambda: aten.convolution.default(x, k, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        "convolution_backward": lambda: aten.convolution_backward.default(
            g, x, k, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        ),
        "log_softmax": lambda: aten._log_softmax.default(a, 1, False),
        "dropout": lambda: aten.native_dropout.default(a, 0.25, True),
        "cat": lambda: aten.cat.default([a, a], 1),
        "add": lambda: aten.add.Tensor(a, a),
        "batch_norm": lambda: aten.native_batch_norm.default(x, None, None, None, None, True, 0.1, 1e-5),
        "max_pool": lambda: aten.max_pool2d_with_indices.default(x, [2, 2], [2, 2]),
        "sort": lambda: aten.sort.default(a, 1),
    }


def slots_of(region: NativeRegion | CopyRegion, results: Sequence[torch.Tensor]) -> list[Slot]:
    """A place for each result, one behind the other."""
    slots: list[Slot] = []
    address = region.begin
    for result in results:
        slots.append(Slot(storage_nbytes(result), address))
        address += -(-storage_nbytes(result) // 4096) * 4096
    return slots


@pytest.mark.parametrize("name", list(operators(inputs())))
def test_results_land_where_they_are_expected_with_the_same_bits(region: NativeRegion, name: str) -> None:
    run = operators(inputs())[name]
    torch.manual_seed(1)
    plain = tensors(run())
    script = region.script([slots_of(region, plain)])
    script.enter()
    script.logging(True)
    learned: tuple[bool, ...] = ()
    for turn in range(3):
        torch.manual_seed(1)
        script.at(0)
        got = tensors(run())
        missed = script.done()
        assert all(torch.equal(p, g) for p, g in zip(plain, got, strict=True))
        addresses = [r.untyped_storage().data_ptr() for r in got]
        if turn == 0:
            learned = script.learn(0, addresses)
            assert any(learned)
        else:
            assert missed == learned.count(False)
            assert [a == s.address for a, s in zip(addresses, script.slots(0), strict=True)] == list(learned)
        del got
    script.leave()
    assert region.stats().planned_live == 0


def test_a_temporary_of_the_same_size_is_learned_to_pass(region: NativeRegion) -> None:
    nbytes = 1 << 20
    script = region.script([[Slot(nbytes, region.begin)]])
    script.enter()
    script.logging(True)

    def operator() -> torch.Tensor:
        torch.empty(nbytes, dtype=torch.uint8).fill_(1)
        return torch.full((nbytes,), 7, dtype=torch.uint8)

    script.at(0)
    first = operator()
    assert script.done() == 0  # the temporary took it
    assert first.data_ptr() != region.begin
    assert [a.place for a in script.log() if a.nbytes == nbytes] == ["planned", "workspace"]
    assert script.learn(0, [first.data_ptr()]) == (True,)
    assert script.slots(0) == (Slot(nbytes, region.begin, 1),)
    script.at(0)
    second = operator()
    assert script.done() == 0
    assert second.data_ptr() == region.begin
    assert torch.equal(first, second)
    script.leave()


def test_a_result_that_nothing_allocates_is_learned_to_be_copied(region: NativeRegion) -> None:
    script = region.script([[Slot(4096, region.begin), Slot(4096, region.begin + 4096)]])
    kept = torch.zeros(1024)
    for turn in range(2):
        script.enter()
        script.logging(True)
        script.at(0)
        made = torch.ones(1024)
        assert script.done() == 1
        if turn == 0:
            assert script.learn(0, [kept.data_ptr(), made.data_ptr()]) == (False, True)
        else:
            assert script.missed() == (0,)
            assert made.data_ptr() == region.begin + 4096
        script.leave()


def test_equal_sizes_are_taken_in_turn(region: NativeRegion) -> None:
    addresses = [region.begin + i * 8192 for i in (2, 0, 1)]
    script = region.script([[Slot(8192, a) for a in addresses]])
    script.enter()
    script.at(0)
    got = [torch.empty(8192, dtype=torch.uint8) for _ in range(4)]
    assert script.done() == 0
    script.leave()
    assert [g.data_ptr() for g in got[:3]] == addresses
    assert not region.begin <= got[3].data_ptr() < region.begin + region.nbytes


def test_a_slot_without_address_keeps_a_result_out_of_the_workspace(region: NativeRegion) -> None:
    script = region.script([[Slot(MIB, 0, skip=1)]])
    script.enter()
    script.logging(True)
    script.at(0)
    got = [torch.empty(MIB, dtype=torch.uint8) for _ in range(2)]
    assert script.done() == 0
    assert [a.place for a in script.log()] == ["workspace", "ordinary"]
    script.leave()
    del got
    assert region.stats().workspace_nbytes == 0


def test_outside_an_operator_nothing_is_placed(region: NativeRegion) -> None:
    script = region.script([[Slot(MIB, region.begin)]])
    before = torch.empty(MIB, dtype=torch.uint8)
    script.enter()
    entered = torch.empty(MIB, dtype=torch.uint8)
    script.at(0)
    script.done()
    after = torch.empty(MIB, dtype=torch.uint8)
    script.leave()
    assert all(t.data_ptr() != region.begin for t in (before, entered, after))
    stats = region.stats()
    assert (stats.hits, stats.misses, stats.workspace_peak_nbytes) == (0, 1, 0)


def test_small_blocks_stay_with_the_c_library(region: NativeRegion) -> None:
    script = region.script([[]])
    script.enter()
    script.logging(True)
    script.at(0)
    torch.empty(64 * KIB - 1, dtype=torch.uint8)
    torch.empty(64 * KIB, dtype=torch.uint8)
    assert [a.place for a in script.log()] == ["ordinary", "workspace"]
    script.leave()


class Model:
    """Best fit, lowest address first, of what is free: found anew from the blocks in use each time."""

    def __init__(self, nbytes: int, alignment: int) -> None:
        self.nbytes = nbytes // alignment * alignment
        self.alignment = alignment
        self.used: dict[int, int] = {}
        self.peak = 0

    def allocate(self, nbytes: int) -> int | None:
        nbytes = -(-nbytes // self.alignment) * self.alignment
        edges = [0, *(e for a, n in sorted(self.used.items()) for e in (a, a + n)), self.nbytes]
        gaps = [(b - a, a) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= nbytes]
        if not gaps:
            return None
        self.used[min(gaps)[1]] = nbytes
        self.peak = max(self.peak, sum(self.used.values()))
        return min(gaps)[1]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([64, 256, 4096]),
    st.lists(st.one_of(st.integers(1, 200_000), st.integers(-60, -1)), min_size=1, max_size=60),
)
def test_the_workspace_is_best_fit_with_coalescing(alignment: int, acts: list[int]) -> None:
    """A positive number allocates so many bytes, a negative one frees the block that it counts to from the end."""
    size = 600_000
    region = native(size, alignment=alignment, smallest=1)
    model = Model(size, alignment)
    script = region.script([[]])
    script.enter()
    script.logging(True)
    live: list[tuple[torch.Tensor, int | None]] = []
    overflowing, overflow_peak = 0, 0
    try:
        for act in acts:
            if act < 0:
                if live:
                    tensor, offset = live.pop(act % len(live))
                    overflowing -= tensor.nbytes if offset is None else 0
                    if offset is not None:
                        del model.used[offset]
                    del tensor
                continue
            script.at(0)
            tensor = torch.empty(act, dtype=torch.uint8)
            script.done()
            offset = model.allocate(act)
            live.append((tensor, offset))
            assert script.log()[0].place == ("overflow" if offset is None else "workspace")
            overflowing += act if offset is None else 0
            overflow_peak = max(overflow_peak, overflowing)
            placed = [(t.data_ptr(), o) for t, o in live if o is not None]
            assert len({address - offset for address, offset in placed}) <= 1
            stats = region.stats()
            assert stats.workspace_nbytes == sum(model.used.values())
            assert stats.workspace_peak_nbytes == model.peak
            assert (stats.overflow_nbytes, stats.overflow_peak_nbytes) == (overflowing, overflow_peak)
            assert tensor.data_ptr() % alignment == 0 or offset is None
    finally:
        script.leave()
        live.clear()
        tensor = None
        assert region.close() == 0


def test_blocks_are_freed_by_any_thread(region: NativeRegion) -> None:
    script = region.script([[Slot(MIB, region.begin)]])
    script.enter()
    script.at(0)
    held = [torch.empty(MIB, dtype=torch.uint8) for _ in range(20)]  # planned, 15 in the workspace, the rest over
    script.leave()
    full = region.stats()
    assert (full.planned_live, full.workspace_live, full.overflows) == (1, 16, 3)
    threads = [threading.Thread(target=lambda: [held.pop() for _ in range(5)] and None) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = region.stats()
    assert (stats.planned_live, stats.workspace_nbytes, stats.overflow_nbytes) == (0, 0, 0)
    assert stats.overflow_peak_nbytes == 3 * MIB


def test_only_the_thread_that_entered_is_placed(region: NativeRegion) -> None:
    script = region.script([[Slot(MIB, region.begin)]])
    script.enter()
    script.at(0)
    other: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: other.append(torch.empty(MIB, dtype=torch.uint8)))
    thread.start()
    thread.join()
    own = torch.empty(MIB, dtype=torch.uint8)
    script.leave()
    assert own.data_ptr() == region.begin
    assert other[0].data_ptr() != region.begin


def test_an_exception_inside_an_operator_leaves_nothing(region: NativeRegion) -> None:
    script = region.script([[Slot(MIB, region.begin)], [Slot(MIB, region.begin)]])

    def operator() -> None:
        script.enter()
        try:
            script.at(0)
            temporary = torch.empty(MIB, dtype=torch.uint8)
            assert temporary.data_ptr() == region.begin
            torch.mm(torch.empty(512, 512), torch.empty(3, 3))
        finally:
            script.leave()

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        operator()
    stats = region.stats()
    assert (stats.planned_live, stats.workspace_nbytes) == (0, 0)
    assert stats.workspace_peak_nbytes == MIB  # what the product was given
    assert torch.empty(MIB, dtype=torch.uint8).data_ptr() != region.begin
    script.enter()
    script.at(1)
    assert torch.empty(MIB, dtype=torch.uint8).data_ptr() == region.begin
    script.leave()


def test_scripts_of_two_regions_nest(region: NativeRegion) -> None:
    inner = native()
    scripts = [r.script([[Slot(MIB, r.begin)]]) for r in (region, inner)]
    scripts[0].enter()
    scripts[0].at(0)
    scripts[1].enter()
    scripts[1].at(0)
    there = torch.empty(MIB, dtype=torch.uint8)
    scripts[1].leave()
    scripts[0].at(0)
    here = torch.empty(MIB, dtype=torch.uint8)
    scripts[0].leave()
    assert (here.data_ptr(), there.data_ptr()) == (region.begin, inner.begin)
    assert inner.close() == 1
    assert torch.equal(there.fill_(3), torch.full_like(there, 3))  # its memory stays as long as it does
    del there


def test_at_tells_what_is_no_operator(region: NativeRegion) -> None:
    script = region.script([[]])
    assert script.at(0) == -1
    script.enter()
    assert [script.at(t) for t in (0, 1, -1)] == [0, -1, -1]
    script.leave()
    script.leave()  # of nothing


def test_memory_outlives_a_closed_region_until_its_tensors_are_gone() -> None:
    arena = Arena(4 * MIB)
    region = open_region(arena.view(0, MIB), arena.view(MIB, 3 * MIB), native=True)
    script = region.script([[Slot(MIB, region.begin)]])
    script.enter()
    script.at(0)
    planned, workspace = torch.ones(MIB // 4), torch.ones(MIB // 4)
    script.leave()
    assert planned.data_ptr() == region.begin
    assert region.close() == 2
    assert region.close() == 0
    with pytest.raises(ExecutionError, match="closed"):
        script.enter()
    with pytest.raises(ExecutionError, match="closed"):
        region.script([])
    assert int(planned.sum()) == int(workspace.sum()) == MIB // 4
    arena.close()  # the pages go, the addresses stay
    assert int(planned.sum()) == 0
    del planned, workspace
    assert native().close() == 0


def test_a_thousand_regions_leave_nothing() -> None:
    planned, workspace = memory(MIB), memory(MIB)
    before = sys.getsizeof(planned)
    for _ in range(1000):
        region = open_region(planned, workspace, native=True)
        script = region.script([[Slot(64 * KIB, region.begin)]] * 3)
        script.enter()
        results: list[torch.Tensor] = []
        for t in range(3):
            script.at(t)
            results = [torch.empty(64 * KIB, dtype=torch.uint8) for _ in range(3)]
        script.leave()
        results.clear()
        stats = region.stats()
        assert (stats.hits, stats.workspace_peak_nbytes) == (3, 4 * 64 * KIB)
        assert region.close() == 0
    assert sys.getsizeof(planned) == before


def test_a_thousand_passes_do_not_grow(region: NativeRegion) -> None:
    run = operators(inputs())["layer_norm"]
    script = region.script([slots_of(region, tensors(run()))])
    peaks: set[int] = set()
    for _ in range(1000):
        script.enter()
        script.at(0)
        run()
        script.leave()
        peaks.add(region.stats().workspace_peak_nbytes)
    stats = region.stats()
    assert (stats.planned_live, stats.workspace_nbytes, stats.overflows) == (0, 0, 0)
    assert len(peaks) == 1


def test_uninstall_and_install_again() -> None:
    region = native()
    script = region.script([[Slot(MIB, region.begin)]])
    script.enter()
    script.at(0)
    held = torch.empty(MIB, dtype=torch.uint8)
    with pytest.raises(ExecutionError, match="entered"):
        uninstall()
    script.leave()
    with pytest.raises(ExecutionError, match="close the executors"):
        uninstall()
    through = torch.empty(MIB, dtype=torch.uint8)
    del held
    region.close()
    uninstall()
    uninstall()
    plain = torch.empty(MIB, dtype=torch.uint8)
    x, k = inputs()["x"], inputs()["k"]
    reference = F.conv2d(x, k)  # oneDNN frees by whatever allocator is in place
    install()
    assert torch.equal(F.conv2d(x, k), reference)
    del through, plain
    again = native()
    script = again.script([[Slot(MIB, again.begin)]])
    script.enter()
    script.at(0)
    assert torch.empty(MIB, dtype=torch.uint8).data_ptr() == again.begin
    script.leave()
    assert again.close() == 0


def test_storages_that_grow_inside_an_operator(region: NativeRegion) -> None:
    script = region.script([[Slot(MIB, region.begin)]])
    grown = torch.arange(10, dtype=torch.uint8)
    script.enter()
    script.at(0)
    grown.resize_(MIB)
    script.leave()
    assert grown.data_ptr() == region.begin
    assert grown[:10].tolist() == list(range(10))
    grown.resize_(2 * MIB)
    assert region.stats().planned_live == 0
    assert grown[:10].tolist() == list(range(10))


@pytest.mark.parametrize("slot", [Slot(4096, 64), Slot(PLANNED + 1, 0), Slot(0, 0), Slot(8, 0, -1)])
@pytest.mark.parametrize("form", [True, False])
def test_slots_outside_the_planned_part_are_refused(slot: Slot, form: bool) -> None:
    region = open_region(memory(PLANNED), native=form)
    if slot.nbytes > PLANNED:
        slot = Slot(slot.nbytes, region.begin)
    with pytest.raises(ExecutionError, match="slot 1 of operator 2"):
        region.script([[], [], [Slot(8, region.begin), slot]])
    region.close()


@pytest.mark.parametrize("alignment", [0, 32, 96, 8192])
def test_alignments_that_are_refused(alignment: int) -> None:
    with pytest.raises(InputError, match=f"alignment is {alignment}"):
        open_region(memory(MIB), alignment=alignment)


def test_read_only_memory_is_refused() -> None:
    with pytest.raises(InputError, match="written"):
        open_region(memoryview(bytes(4096)), native=True)


def test_the_form_that_copies_misses_every_slot() -> None:
    region = open_region(memory(MIB), native=False)
    assert isinstance(region, CopyRegion)
    assert not region.native
    script = region.script([[Slot(4096, region.begin), Slot(4096, 0)], [Slot(4096, region.begin)], []])
    script.enter()
    assert [script.at(0), script.at(1), script.at(2)] == [0, 1, 1]
    assert script.missed() == (0,)
    script.at(0)
    assert script.done() == 1
    assert script.missed() == (0,)
    assert script.learn(0, [1, 2]) == (False, False)
    assert script.at(9) == -1
    script.leave()
    assert region.stats().misses == 3
    assert region.close() == 0


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("no-such-compiler", "no-such-compiler"),
        ("false", "did not|does not compile|status 1"),
        ("echo", "loaded|No such"),
    ],
)
def test_without_a_compiler_results_are_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, message: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    with pytest.raises(NativeUnavailableError, match=message):
        open_region(memory(MIB), native=True)
    region = open_region(memory(MIB))
    assert isinstance(region, CopyRegion)
    assert region.reason
    assert not list(tmp_path.glob("native/*"))


def test_a_damaged_library_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = allocator_build.native_library()
    assert source is allocator_build.native_library()
    code = textwrap.dedent("""
        import os, pathlib, sys
        from tensorstow.runtime.training import allocator_build as build
        digest = build._digest(build._compiler(os.environ.get("CXX", "")))
        path = pathlib.Path(os.environ["TENSORSTOW_CACHE"]) / "native" / f"allocator-{digest}.so"
        path.parent.mkdir()
        path.write_bytes(b"half a library")
        build.native_library()
        assert [p.name for p in path.parent.iterdir()] == [path.name], list(path.parent.iterdir())
        print("ok")
    """)
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    assert _python(code) == "ok\n"


def test_after_a_fork_both_go_on() -> None:
    code = textwrap.dedent("""
        import os, threading, torch
        from tensorstow.runtime.arena import Arena
        from tensorstow.runtime.training.allocator import Slot, open_region
        torch.set_num_threads(1)
        n = 1 << 20
        arena = Arena(9 * n)
        region = open_region(arena.view(0, n), arena.view(n, 8 * n), native=True)
        script = region.script([[Slot(n, region.begin)]])
        stop = threading.Event()
        def busy():
            own = region.script([[]])
            own.enter()
            while not stop.wait(0.0002):  # else this thread has the interpreter nearly all the time
                for _ in range(20):
                    own.at(0)
                    torch.empty(n, dtype=torch.uint8)
            own.leave()
        thread = threading.Thread(target=busy, daemon=True)
        thread.start()
        def use():
            script.enter()
            for _ in range(5):
                script.at(0)
                a, b = torch.ones(n // 4), torch.ones(n // 4)
                assert a.data_ptr() == region.begin and float((a + b).sum()) == n / 2
            script.leave()
        for _ in range(8):
            child = os.fork()
            if child == 0:
                try:
                    use()
                except BaseException:
                    os._exit(1)
                os._exit(0)
            use()
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        print("ok")
    """)
    assert _python(code) == "ok\n"


def test_resident_memory_is_bounded_by_the_region() -> None:
    """Results and temporaries of 8 MiB and falling: they use the same bytes again, which were resident before."""
    code = textwrap.dedent("""
        import sys, torch
        from tensorstow.runtime.arena import Arena
        from tensorstow.runtime.memory import current_rss_nbytes, peak_rss_nbytes, reset_peak, trim_heap
        from tensorstow.runtime.training.allocator import Slot, open_region
        torch.set_num_threads(1)
        n, rows = 8 << 20, 2 << 20
        arena = Arena(4 * n)
        region = open_region(arena.view(0, n), arena.view(n, 3 * n), native=True)
        script = region.script([[Slot(n - 4000 * t, region.begin, 2)] for t in range(40)])
        a = torch.ones(rows)
        (a[:9] * 2 + 1).relu()
        for planned in (True, False):
            trim_heap()
            reset_peak()
            before = current_rss_nbytes()
            script.enter()
            for t in range(40):
                if planned:
                    script.at(t)
                x = (a[: rows - 1000 * t] * 2 + 1).relu()
                x = None
            script.leave()
            stats = region.stats()
            print(peak_rss_nbytes() - before, stats.hits, stats.overflows, stats.workspace_peak_nbytes)
    """)
    (grown, *counts), (plain, *_) = ([int(n) for n in line.split()] for line in _python(code).splitlines())
    assert counts == [40, 0, 16 * MIB]
    assert grown < 2 * MIB
    assert plain > 14 * MIB


def test_tensors_alive_at_the_end_of_a_process_do_no_harm() -> None:
    code = textwrap.dedent("""
        import builtins, mmap, torch
        from tensorstow.runtime.training.allocator import Slot, open_region
        n = 1 << 20
        region = open_region(memoryview(mmap.mmap(-1, n)), memoryview(mmap.mmap(-1, 2 * n)), native=True)
        script = region.script([[Slot(n, region.begin)]])
        script.enter()
        script.at(0)
        builtins.kept = [torch.empty(n, dtype=torch.uint8) for _ in range(5)]
        print("ok")
    """)
    assert _python(code) == "ok\n"


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
