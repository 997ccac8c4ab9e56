"""Which tensor of a checkpoint is which parameter of a module."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from ...ir.errors import InputError
from .runs import NotRunsError, as_tensor, runs_of
from .tensors import FileTensor, WeightFiles

COMPARED_NBYTES = 4 << 20


@dataclass(frozen=True)
class Matched:
    """A checkpoint as a module sees it.

    `tensors` are the file's by the module's qualified names, a tied one under each of its names. `extra` are those that
    the module has no place for: worth a warning, as another head's weights are.
    """

    files: WeightFiles
    tensors: dict[str, FileTensor]
    extra: tuple[str, ...]


def match(module: Any, files: WeightFiles) -> Matched:
    """Find the file's tensor of every parameter and persistent buffer of `module`, an nn.Module, skeleton or not.

    Names differ as transformers lets them differ (a base model's prefix, renamings of its versions, experts stacked).
    Buffers that the file lacks keep their value, and so do frozen parameters that the model computes (`computable`).
    Raises InputError for other parameters that it lacks, and for tensors of another shape or type, with both.
    """
    wanted: dict[str, Any] = dict(module.state_dict(keep_vars=True))
    computed = computable(module)
    found, extra = _by_module_name(module, files, wanted)
    parameters = {id(p) for p in module.parameters()}
    tensors: dict[str, FileTensor] = {}
    missing: list[str] = []
    for names in _tied(wanted):
        present = [n for n in names if n in found]
        for name in present:
            _check_same(name, wanted[name], found[name])
        if present:
            _check_tied(present, found)
            tensors.update(dict.fromkeys(names, found[present[0]]))
        elif id(wanted[names[0]]) in parameters and (wanted[names[0]].is_meta or names[0] not in computed):
            missing.append(names[0])
    if missing:
        raise InputError(
            f"'{files.where}' holds {len(files.tensors)} tensors, but not {_some(missing)} of the module; it is a "
            "checkpoint of another model, or only a part of one"
        )
    return Matched(files, tensors, tuple(extra))


def computable(module: Any) -> frozenset[str]:
    """Parameters of `module` that are not trained, and that its authors say a checkpoint may lack: tables of positions
    that the model computes."""
    names = ("_keys_to_ignore_on_save", "_keys_to_ignore_on_load_missing")
    patterns = [p for n in names for p in getattr(module, n, None) or ()]
    frozen = (n for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad)
    return frozenset(n for n in frozen if any(re.search(p, n) for p in patterns))


def _tied(wanted: dict[str, Any]) -> Iterable[list[str]]:
    """Names of the same tensor, together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        if hasattr(tensor, "shape"):  # an extra state can be anything
            groups.setdefault(id(tensor), []).append(name)
    return groups.values()


def _some(names: list[str]) -> str:
    text = ", ".join(repr(n) for n in names[:4])
    return text + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _check_same(name: str, wanted: Any, found: FileTensor) -> None:
    dtype, shape = str(wanted.dtype).removeprefix("torch."), tuple(wanted.shape)
    if found.shape != shape:
        raise InputError(
            f"parameter '{name}' has shape {list(shape)} in the module, {list(found.shape)} in '{found.path}'; module "
            "and checkpoint are of different models"
        )
    if found.dtype != dtype:
        raise InputError(
            f"parameter '{name}' is {dtype} in the module, {found.dtype} in '{found.path}', and nothing is converted "
            f'on the way: make the module in the file\'s type (.to(torch.{found.dtype}), or "dtype" in config.json), '
            "or save the checkpoint in the module's"
        )


def _check_tied(names: list[str], found: dict[str, FileTensor]) -> None:
    first = found[names[0]]
    for name in names[1:]:
        if found[name].pieces != first.pieces and not _same_bytes(first, found[name]):
            raise InputError(
                f"'{names[0]}' and '{name}' are one parameter of the module, and two different tensors in "
                f"'{first.path}'; say \"tie_word_embeddings\": false in config.json, or untie them in the module"
            )


def _same_bytes(a: FileTensor, b: FileTensor) -> bool:
    return a.nbytes == b.nbytes and all(x == y for x, y in zip(_chunks(a), _chunks(b), strict=True))


def _chunks(tensor: FileTensor) -> Iterable[bytes]:
    """The bytes of a tensor, a few MiB at a time; both sides of a comparison are of one piece or cut alike."""
    rest = b""
    for piece in tensor.pieces:
        with open(piece.path, "rb") as file:
            file.seek(piece.file_offset)
            left = piece.nbytes
            while left:
                got = file.read(min(left, COMPARED_NBYTES - len(rest)))
                if not got:
                    raise InputError(
                        f"'{piece.path}' ends {left} bytes before {tensor.name!r} does; get the whole file"
                    )
                left -= len(got)
                rest += got
                if len(rest) == COMPARED_NBYTES:
                    yield rest
                    rest = b""
            os.posix_fadvise(file.fileno(), piece.file_offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
    yield rest


def _by_module_name(module: Any, files: WeightFiles, wanted: dict[str, Any]) -> tuple[dict[str, FileTensor], list[str]]:
    """The file's tensors by the module's names, and the names of those that it has no place for."""
    modeling = sys.modules.get("transformers.modeling_utils")  # there, if anybody has made one of its modules
    if modeling is not None and isinstance(module, modeling.PreTrainedModel):
        return _as_transformers(module, files, wanted)
    return {n: t for n, t in files.tensor.items() if n in wanted}, [n for n in files.tensor if n not in wanted]


def _as_transformers(
    module: Any, files: WeightFiles, wanted: dict[str, Any]
) -> tuple[dict[str, FileTensor], list[str]]:
    """By the rules of transformers' own loading (core_model_loading.convert_and_load_state_dict_in_model)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(module)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    prefix = module.base_model_prefix
    found: dict[str, FileTensor] = {}
    extra: list[str] = []
    conversions: dict[str, tuple[Any, dict[str, list[FileTensor]]]] = {}
    for original in sorted(files.tensor, key=dot_natural_key):
        tensor = files.tensor[original]
        name, pattern = rename_source_key(original, renamings, converters, prefix, wanted)
        if name not in wanted and original in wanted:
            name, pattern = rename_source_key(original, [], [], prefix, wanted)
        if name not in wanted:
            extra.append(original)
        elif pattern is None:
            found[name] = tensor
        else:
            _, collected = conversions.setdefault(name, (deepcopy(by_pattern[pattern]), {}))
            collected.setdefault(pattern, []).append(tensor)
    for name, (converter, collected) in conversions.items():
        found.update(_converted(module, files, name, converter, collected))
    return found, _unexpected(module, extra)


def _converted(
    module: Any, files: WeightFiles, name: str, converter: Any, collected: dict[str, list[FileTensor]]
) -> dict[str, FileTensor]:
    """What a converter makes of tensors of the file, by their names in the module."""
    values: dict[str, Any] = {p: [runs_of(t) for t in ts] for p, ts in collected.items()}
    try:
        for operation in converter.operations:
            values = operation.convert(
                values,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=name,
                model=module,
                config=module.config,
                missing_keys=None,
            )
    except (NotRunsError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        steps = ", ".join(type(o).__name__ for o in converter.operations)
        raise InputError(
            f"'{name}' is laid out otherwise in '{files.where}' than in the module, and cannot be read from there "
            f"({steps}: {error}); convert it once: {type(module).__name__}.from_pretrained(...).save_pretrained(..., "
            "save_original_format=False)"
        ) from error
    full = name.replace("*.", "0.")
    cut = next((full.partition(k) for k in values if k in full), None)
    renamed = {cut[0] + k + cut[2] if cut else k: v for k, v in values.items()}
    return {n: as_tensor(n, v[0] if isinstance(v, list) else v) for n, v in renamed.items()}


def _unexpected(module: Any, extra: list[str]) -> list[str]:
    """Without those that the model's authors say to pass over."""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return [n for n in extra if not any(re.search(p, n) for p in patterns)]
