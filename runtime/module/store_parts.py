"""What of a module in memory a plan places: parts of blobs, found in the module and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph, Storage, Tensor
from ...ir.program import BlobSource, ModuleProgram, Parameter, row_major
from .lazy import LazyTensor


@dataclass(slots=True)
class Part:
    """Bytes [offset, offset + nbytes) of `blob` are the elements of `tensors`: one, or several over the same bytes."""

    blob: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    tensors: tuple[Any, ...]

    @property
    def address(self) -> int:
        """Where they lie in memory."""
        return int(self.tensors[0].data_ptr())


def parts_of(program: ModuleProgram, graph: Graph, module: Any) -> dict[str, list[Part]]:
    """What each blob is made of, in the order of its bytes; everything that may be wrong is found here."""
    found: dict[str, dict[int, Part]] = {source.blob: {} for source in program.blobs}
    named: dict[int, tuple[str, Part]] = {}  # by tensor
    for parameter in program.parameters:
        wanted = graph.tensor.get(parameter.tensor)
        storage = graph.storage.get((wanted and wanted.storage) or "")
        if wanted is None or storage is None or storage.blob is None or storage.blob not in found:
            raise PlanMismatchError(f"parameter '{parameter.names[0]}' has no blob in the graph; plan again")
        part = _part(parameter, wanted, storage, module)
        same = found[storage.blob].setdefault(part.offset, part)
        if same is not part:
            if same.address != part.address or same.nbytes != part.nbytes:
                raise PlanMismatchError(
                    f"parameter '{parameter.names[0]}' ({part.nbytes} bytes) shares blob '{storage.blob}' with "
                    f"another ({same.nbytes} bytes) that lies elsewhere in memory; plan again"
                )
            same.tensors = tuple({id(t): t for t in (*same.tensors, *part.tensors)}.values())
        for tensor in part.tensors:
            other, first = named.setdefault(id(tensor), (parameter.names[0], same))
            if first is not same:
                raise InputError(
                    f"parameters '{other}' and '{parameter.names[0]}' are tied, one tensor in two places, and they "
                    "were not when the plan was made; plan again"
                )
    ordered: dict[str, list[Part]] = {}
    for source in program.blobs:
        ordered[source.blob] = sorted(found[source.blob].values(), key=lambda p: p.offset)
        _check_blob(source, ordered[source.blob])
    return ordered


def _check_blob(source: BlobSource, parts: list[Part]) -> None:
    end = 0
    for part in parts:
        if part.offset < end:
            raise PlanMismatchError(
                f"parameters overlap in blob '{source.blob}': one ends at byte {end}, the next begins at "
                f"{part.offset}; plan again"
            )
        end = part.offset + part.nbytes
    if not parts or end > source.nbytes:
        raise PlanMismatchError(
            f"blob '{source.blob}' has {source.nbytes} bytes, the parameters in it end at byte {end}; plan again"
        )


def _part(parameter: Parameter, wanted: Tensor, storage: Storage, module: Any) -> Part:
    """The tensors of a parameter, checked. Raises InputError with what is and what should be."""
    tensors = {id(t): t for t in (_find(module, name) for name in parameter.names)}
    shape = wanted.shape or ()
    strides = parameter.strides or row_major(shape)
    for name, tensor in zip(parameter.names, (_find(module, n) for n in parameter.names), strict=True):
        if isinstance(tensor, LazyTensor):
            raise InputError(
                f"parameter '{name}' is run by a plan already, that of this module or of one that shares it; end that "
                "first (.tensorstow.give_back()), or plan one module that holds both"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (tuple(tensor.shape), dtype) != (shape, wanted.dtype):
            raise InputError(
                f"parameter '{name}' has shape {list(tensor.shape)} of {dtype}, the plan is for {list(shape)} of "
                f"{wanted.dtype}; plan again for the module as it is"
            )
        if tensor.is_conj() or tensor.is_neg():
            kind = "conjugate" if tensor.is_conj() else "negative"
            raise InputError(
                f"parameter '{name}' is the {kind} of what is in its memory, and was not when the plan was made; make "
                "it one of its own (.resolve_conj().resolve_neg()), or plan again"
            )
        if tensor.device.type != "cpu":
            raise InputError(f"parameter '{name}' is on device '{tensor.device}'; move the module to 'cpu' first")
        laid = tuple(s for s, n in zip(tensor.stride(), shape, strict=True) if n > 1)
        asked = tuple(s for s, n in zip(strides, shape, strict=True) if n > 1)
        if laid != asked and wanted.nbytes:
            raise InputError(
                f"parameter '{name}' has strides {list(tensor.stride())}, the plan is for {list(strides)}; plan again"
            )
    offset = storage.blob_offset + wanted.offset
    part = Part(storage.blob or "", offset, wanted.nbytes, shape, tuple(strides), tuple(tensors.values()))
    if len({t.data_ptr() for t in part.tensors}) > 1:
        raise InputError(
            f"parameters {list(parameter.names)} were tied when the plan was made and are not now; plan again"
        )
    return part


def _find(module: Any, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    try:
        found = module.get_submodule(owner)
    except AttributeError:
        found = None
    for table in ("_parameters", "_buffers"):
        tensor = getattr(found, table, {}).get(last)
        if tensor is not None:
            return tensor
    raise InputError(f"the module has no parameter or buffer '{name}', which the plan places; plan again for this one")
