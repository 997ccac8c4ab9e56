"""Plans of PyTorch modules executed: the module made again, its weights in a store, arrays in and arrays out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .hosts import Progress, require_host, silent
from .ir.codec import digest, to_json
from .ir.errors import InputError, PlanMismatchError
from .ir.files import PlanFile
from .ir.paths import cache_dir, cache_scratch, unwritable
from .ir.program import ModelSource, ModuleProgram
from .module_arrays import arrays, fresh_inputs, on_device
from .modules import ModuleModel, module_from_entry
from .planner.entry import HF

if TYPE_CHECKING:
    from torch import nn

    from .runtime.module.executor import ModuleExecutor
    from .runtime.passes import Stats
    from .runtime.profile import Profile
    from .runtime.reading import WeightReader


def apply_module(file: PlanFile, model: object = None, *, threads: int | None = None) -> nn.Module:
    """The module that `file` was planned for, run by the plan: the one given, or the one that its entry makes."""
    from .modules import module_in_memory

    require_host(file.machine)
    if model is None or isinstance(model, (str, Path)):
        made = _made_to_run(file, None if model is None else Path(model))
    else:
        made = module_in_memory(model, {}, ())
    executor = _executor(file, made, threads, silent)
    try:
        executor.load()
    except BaseException:
        executor.give_back()
        raise
    return made.module


def remake(file: PlanFile, moved: Path | None = None) -> ModuleModel:
    """The module and the example inputs of a plan file, from its entry; `moved` says where it lies now."""
    program, source = _program(file), file.source
    if program.entry is None or source is None:
        raise InputError(
            "the plan is for a module in memory; ts.apply(plan, module) runs it. What the command line runs is planned "
            "from hf:DIR or file.py:callable"
        )
    entry = program.entry
    if moved is not None:
        entry = f"{HF}{str(moved).removeprefix(HF)}" if entry.startswith(HF) else f"{moved}:{entry.rpartition(':')[2]}"
    return module_from_entry(entry, source.dims, allow_pickle=source.allow_pickle)


def _program(file: PlanFile) -> ModuleProgram:
    assert file.module is not None
    return file.module


def open_module(
    file: PlanFile, model: Path | None, *, threads: int | None = None, progress: Progress = silent
) -> ModuleRunner:
    """An executor of arrays for a plan file of a module; `model` says where it lies if it moved."""
    made = _made_to_run(file, model)
    return ModuleRunner(_executor(file, made, threads, progress), made)


def _made_to_run(file: PlanFile, moved: Path | None) -> ModuleModel:
    """The module of a plan file, and its weights as they were when it was planned, or those at `moved`, whatever they
    are. Raises PlanMismatchError where a file of the planned directory is another one now."""
    from .runtime.store import Identity

    source = file.source
    if moved is None and source is not None and source.path.startswith(HF):
        try:
            Identity("", source.files).check_sources()
        except PlanMismatchError as error:
            where = source.path.removeprefix(HF)
            raise PlanMismatchError(f"{error}, or give --model {where} to run what is there") from error
    return remake(file, moved)


def _executor(
    file: PlanFile, made: ModuleModel, threads: int | None, progress: Progress, hollow: Path | None = None
) -> ModuleExecutor:
    """The store opened, or made from what the module holds, and the executor over it. With `hollow`, a folder, what
    would be repacked is a file of zeros there, which takes no room."""
    import torch

    from .moe_runs import install_experts
    from .planner.pytorch.binding import kept_names
    from .planner.pytorch.hf import fill_kept, zero_kept
    from .planner.pytorch.rebinding import rebind, without_files
    from .runtime.module.executor import ModuleExecutor
    from .sparse_rows import install_rows

    program, graph = _program(file), file.graph
    if made.matched is not None:
        program = rebind(graph, program, made.matched)
        fill_kept(made.module, made.matched, kept_names(made.module, program))
    elif hollow is not None:
        zero_kept(made.module, kept_names(made.module, program))
    else:
        program = without_files(graph, program)
    threads = threads or file.machine.units[0].threads or None
    if hollow is not None and not program.direct:
        from .rehearse import hollow_store

        store: WeightReader = hollow_store(program, hollow / "store")
    else:
        store = _open_store(file, program, made, progress)
    with torch.inference_mode(mode=False):  # tensors that inference mode makes do not tell whether they are written to
        try:
            executor = ModuleExecutor(file.plan, graph, program, store, file.machine, made.module, threads=threads)
        except BaseException:
            _close_unused(store)
            raise
        executor.own_store()
        try:
            install_rows(executor, program)
            install_experts(executor, program)
        except BaseException:
            executor.give_back()
            raise
    return executor


def _from_directory(made: ModuleModel) -> bool:
    return (made.entry or "").startswith(HF)


def _close_unused(store: WeightReader) -> None:
    """Close a store that no executor has taken; what it holds of a module in memory goes back there."""
    from .runtime.reading import Lender

    try:
        if isinstance(store, Lender):
            store.restore()
    finally:
        store.close()


def _open_store(file: PlanFile, program: ModuleProgram, made: ModuleModel, progress: Progress) -> WeightReader:
    from .runtime.module.store_memory import store_module
    from .runtime.store import WeightStore
    from .runtime.store_files import FileStore

    if made.matched is None and _from_directory(made):
        raise InputError(
            f"'{(made.entry or '').removeprefix(HF)}' holds no weights, only a config: what was planned from it can be "
            "shown; put them there, or say with --model where they are"
        )
    if made.matched is None:
        return store_module(program, file.graph, made.module, progress=_repacking(progress))
    files = made.matched.files.files
    if program.direct:
        return FileStore.open(program, files)
    identity = {"engine": program.engine, "files": to_json(files)}
    folder = cache_dir() / "stores" / digest([program.blobs, identity])[:32]
    return WeightStore.open_or_build(program, identity=identity, folder=folder, progress=_repacking(progress))


def _repacking(progress: Progress) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        progress("repacking weights", done / max(total, 1))

    return tell


class ModuleRunner:
    """A module's executor as `run` and `verify` see it: arrays by name to arrays by name."""

    def __init__(self, executor: ModuleExecutor, made: ModuleModel, source: ModelSource | None = None) -> None:
        self.executor = executor
        self.made = made
        self._source = source

    @property
    def stats(self) -> Stats:
        """Of the last pass."""
        return self.executor.stats

    @property
    def threads(self) -> int:
        """PyTorch's."""
        return self.executor.threads

    def load(self) -> int:
        """Bring what is resident into its place; the bytes read."""
        return self.executor.load()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One pass; inputs that are not given are the example's."""
        args, kwargs = self._inputs(inputs)
        return arrays(self.executor.run(*args, **kwargs))

    def take_all(self) -> None:
        """Take all the memory now that else comes with what the inputs ask for."""
        if self.executor.rows is not None:
            self.executor.rows.touch()

    def run_others(self) -> None:
        """One pass of each further kind that the plan serves: of the prompt, where it is made for a token's."""
        from .modules import with_sizes

        own, source = self.made, self._source
        for dims in () if source is None else source.others:
            self.made = with_sizes(own, dims)
            self.run({})
        self.made = own

    def _inputs(self, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh ones, where the module computes."""
        return on_device(fresh_inputs(self.made, given), self.executor.device)

    def compute_only(self) -> float:
        """Seconds of a pass in which nothing moves."""
        args, kwargs = self._inputs({})
        return self.executor.compute_only(*args, **kwargs)

    def io_only(self) -> float:
        """Seconds of the transfers of a pass alone."""
        return self.executor.io_only()

    def profile(self, passes: int) -> Profile:
        """Times of parts and rates of lanes, as they are in real passes."""
        args, kwargs = self._inputs({})
        return self.executor.profile(passes, *args, **kwargs)

    def close(self) -> None:
        """End the threads, give the memory back, close the store."""
        self.executor.close()

    def __enter__(self) -> ModuleRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def hollow_runner(file: PlanFile) -> Generator[ModuleRunner]:
    """An executor as `run` would have it on files of zeros, which take no room on the disk.

    A module without files is made as it is: its weights exist before the plan has a say. Of a directory without
    weights all are zeros.
    """
    made = remake(file)
    if made.matched is None and not _from_directory(made):
        with ModuleRunner(_executor(file, made, None, silent), made) as runner:
            yield runner
        return
    with cache_scratch() as folder, _hollow_runner(file, made, folder) as runner:
        yield runner


def _hollow_runner(file: PlanFile, made: ModuleModel, folder: Path) -> ModuleRunner:
    hollow = made if made.matched is None else replace(made, matched=_hollow(made, folder))
    return ModuleRunner(_executor(file, hollow, None, silent, folder), hollow, file.source)


def _hollow(made: ModuleModel, folder: Path) -> Any:
    """The files of a model with every byte zero: holes of their sizes, under their names."""
    from .modules import source_file

    matched = made.matched
    assert matched is not None
    moved: dict[str, Path] = {}
    for file in matched.files.files:
        moved[file.path] = folder / Path(file.path).name
        try:
            with moved[file.path].open("wb") as hole:
                hole.truncate(file.nbytes)
        except OSError as error:
            raise unwritable(folder, error) from error
    tensors = {
        name: replace(t, pieces=tuple(replace(p, path=str(moved[p.path])) for p in t.pieces))
        for name, t in matched.tensors.items()
    }
    files = replace(matched.files, files=tuple(source_file(p) for p in moved.values()))
    return replace(matched, files=files, tensors=tensors)
