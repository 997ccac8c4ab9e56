"""What a process that runs a plan holds beside what the plan manages, measured by running the plan without weights."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

from .execute import random_inputs
from .executors import read_runnable
from .ir.codec import digest, dumps
from .ir.errors import TensorstowError
from .ir.files import PlanFile
from .ir.paths import cache_scratch, unwritable
from .ir.program import ModuleProgram, Program
from .runtime.memory import peak_rss_nbytes
from .runtime.store import CRC_NBYTES, INDEX, SCHEMA, WEIGHTS, BlobEntry, Index, WeightStore, identity_of, layout

PASSES = 3
"""From the second on, the outputs of the pass before are still held, as a caller holds them."""


def fixed_nbytes(plan_path: Path, *, rehearse: bool) -> int:
    """Peak resident bytes of this process with everything of a run, less what the plan manages of them.

    With `rehearse` the plan is run on a store of zeros, which takes no room on the disk: the kernels touch the same
    code and the same memory as in a real run. Where that cannot be done here (too little memory now, an operator that
    refuses zeros), and without `rehearse`, what is set up before the first pass is counted.
    """
    file = read_runnable(plan_path)
    managed = file.promised_peak_nbytes - file.fixed_nbytes
    if rehearse:
        try:
            _rehearse(file)
            return max(0, peak_rss_nbytes() - managed) + counting_error_nbytes()
        except TensorstowError:
            pass  # what is counted below needs no pass
    return _set_up(file) + counting_error_nbytes()


def counting_error_nbytes() -> int:
    """By how much two readings of one peak may differ: Linux counts resident pages, anonymous ones and those of files,
    on each processor for itself, and adds up when `max(32, 2 * processors)` have gathered (lib/percpu_counter.c)."""
    processors = len(os.sched_getaffinity(0))
    return 2 * processors * max(32, 2 * processors) * mmap.PAGESIZE


def _rehearse(file: PlanFile) -> None:
    if file.training is not None:
        from .training_fixed import rehearse_training

        rehearse_training(file)
        return
    if file.module is not None:
        from .module_runs import hollow_runner

        with hollow_runner(file) as runner:
            runner.load()
            runner.take_all()
            runner.run_others()
            outputs = [runner.run({})]
            for _ in range(PASSES - 1):
                outputs[0] = runner.run({})
        return
    from .runtime.onnx_executor import OnnxExecutor  # a step of PyTorch holds nothing of it

    assert file.program is not None
    inputs = random_inputs(file)
    with (
        cache_scratch() as parent,
        hollow_store(file.program, parent / "store") as store,
        OnnxExecutor(file.plan, file.graph, file.program, store, file.machine) as executor,
    ):
        executor.load()
        outputs = [executor.run(inputs)]
        for _ in range(PASSES - 1):
            outputs[0] = executor.run(inputs)


def _set_up(file: PlanFile) -> int:
    if file.training is not None:
        from .training_fixed import set_up_training

        return set_up_training(file)
    if file.module is not None:
        from .module_runs import hollow_runner

        with hollow_runner(file):
            return max(0, peak_rss_nbytes() - sum(file.plan.arena_nbytes.values()))
    from .runtime.kernels import load_kernels, use_threads
    from .runtime.memory import settle_allocator

    assert file.program is not None
    settle_allocator()
    use_threads(file.machine.units[0].threads or None)
    operators = {o.id: o.op_type for o in file.graph.operators if o.id in file.program.kernels}
    kernels = load_kernels(file.program, operators)
    peak = peak_rss_nbytes()
    del kernels
    return peak


def hollow_store(program: Program | ModuleProgram, folder: Path) -> WeightStore:
    """A store for `program` in which every weight is zeros: a file that is one hole, with an index that fits it."""
    offsets, nbytes = layout(program)
    whole = zlib.crc32(bytes(CRC_NBYTES))
    entries: list[BlobEntry] = []
    for source, offset in zip(program.blobs, offsets, strict=True):
        pieces, rest = divmod(source.nbytes, CRC_NBYTES)
        sums = (whole,) * pieces + ((zlib.crc32(bytes(rest)),) if rest else ())
        entries.append(BlobEntry(source.blob, offset, source.nbytes, sums))
    identity = {"engine": program.engine, "files": []}
    index = Index(SCHEMA, identity_of(identity), digest(program.blobs), nbytes, tuple(entries))
    try:
        folder.mkdir()
        with (folder / WEIGHTS).open("wb") as file:
            file.truncate(nbytes)
        (folder / INDEX).write_bytes(dumps(index))
    except OSError as error:
        raise unwritable(folder, error) from error
    return WeightStore.open_or_build(program, identity=identity, folder=folder)
