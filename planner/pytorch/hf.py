"""Hugging Face directories: which module they hold, made without its weights, and with those that it keeps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...ir.errors import InputError
from .matching import Matched, computable
from .on_meta import NothingRandom, parameters_on_meta
from .tensors import FileTensor, WeightFiles
from .weights import has_weights, open_weights

READ_NBYTES = 4 << 20

# Where a config does not say its architecture: what such a network is mostly used for.
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_MAPPING",
)


@dataclass(frozen=True)
class HfModel:
    """A directory: its config, the class that runs it, the type of its weights, and the weights, if it has any."""

    path: Path
    config: Any
    module_class: Any
    dtype: torch.dtype
    files: WeightFiles | None


def open_directory(path: Path, *, dtype: str | None = None, allow_pickle: bool = False) -> HfModel:
    """What `path` holds. No code of the directory is executed, and nothing of its weights is read but headers.

    `dtype` ('float32', 'bfloat16', ...) instead of the config's. Raises InputError where there is no config.json, for a
    model that the installed transformers does not know, for quantised ones, and for damaged weights.
    """
    transformers = _transformers()
    if not (path / "config.json").is_file():
        here = "is not a directory" if not path.is_dir() else "has no config.json"
        raise InputError(f"'{path}' {here}; give the directory of a model as save_pretrained writes it")
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a config can fail in as many ways as it has keys
        raise InputError(
            f"transformers {transformers.__version__} cannot use '{path / 'config.json'}': {_first_line(error)}"
        ) from error
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise InputError(
            f"'{path}' is quantised ({method}): its weights need kernels of their own, which are not planned; give the "
            "model in float32, float16 or bfloat16"
        )
    files = open_weights(path, allow_pickle=allow_pickle) if has_weights(path) else None
    module_class = _module_class(transformers, config, path)
    return HfModel(path, config, module_class, _dtype(dtype, config, files, path), files)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"a Hugging Face directory needs the package transformers ({error}); pip install tensorstow[hf]"
        ) from error
    return transformers


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _module_class(transformers: Any, config: Any, path: Path) -> Any:
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    from transformers.models.auto import modeling_auto

    for mapping in (getattr(modeling_auto, name, {}) for name in _MAPPINGS):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, (tuple, list)) else found
    raise InputError(
        f"'{path}' names the architecture {list(config.architectures or ())} of model type '{config.model_type}', for "
        f"which transformers {transformers.__version__} has no module; install a version that has"
    )


def _dtype(asked: str | None, config: Any, files: WeightFiles | None, path: Path) -> torch.dtype:
    """As asked, else the config's, else that of the first floating tensor of the files: as from_pretrained decides."""
    found: Any = asked or getattr(config, "dtype", None)
    if found is None and files is not None:
        found = next((t.dtype for t in files.tensors if t.dtype in ("float64", "float32", "float16", "bfloat16")), None)
    if isinstance(found, str):
        found = getattr(torch, found.removeprefix("torch."), found)
    found = torch.float32 if found is None else found
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"{str(found)!r} is no floating type for the weights of '{path}'; give float32 or bfloat16")
    return found


def make_skeleton(model: HfModel) -> nn.Module:
    """The module of a directory in eval mode: parameters on meta, buffers with their values, weights tied as they are;
    what the model computes and does not save has values, too.

    Raises InputError where the module cannot be made from the config.
    """
    transformers = _transformers()
    config = type(model.config).from_dict(model.config.to_dict())  # making a module writes into its config
    config.name_or_path = str(model.path)
    try:
        with parameters_on_meta(), NothingRandom():
            module = model.module_class._from_config(config, dtype=model.dtype)
    except Exception as error:
        raise InputError(
            f"transformers {transformers.__version__} cannot make {model.module_class.__name__} from "
            f"'{model.path / 'config.json'}': {_first_line(error)}"
        ) from error
    module.tie_weights()
    _keep_in_float32(module, model.dtype)
    _compute(module)
    if module.can_generate():
        module.generation_config = _generation_config(transformers, model.path)
    return module.eval()


def _generation_config(transformers: Any, path: Path) -> Any:
    """As from_pretrained finds it: in a file of its own, else among the keys of config.json, where older models have
    it and no module that is made from the config sees it. Raises InputError where it says what cannot be."""
    read = transformers.GenerationConfig.from_pretrained
    try:
        try:
            return read(str(path), local_files_only=True)
        except OSError:  # there is none, or it is no JSON
            return read(str(path), config_file_name="config.json", _from_model_config=True, local_files_only=True)
    except Exception as error:  # it can fail in as many ways as it has keys
        raise InputError(
            f"transformers {transformers.__version__} cannot use the generation config of '{path}': "
            f"{_first_line(error)}"
        ) from error


def _compute(module: Any) -> None:
    """Give values to parameters that the model computes itself (`computable`), by its own initialisation.

    One that comes out otherwise the second time is random, and stays on meta: a checkpoint has to have it.
    """
    for name in sorted(computable(module)):
        prefix, _, attribute = name.rpartition(".")
        owner = module.get_submodule(prefix)
        before = owner.get_parameter(attribute)
        found: list[torch.Tensor] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for start in (0.0, 1.0):
                made = torch.full(before.shape, start, dtype=before.dtype)
                setattr(owner, attribute, nn.Parameter(made, requires_grad=False))
                module._init_weights(owner)
                found.append(owner.get_parameter(attribute))
        if not torch.equal(*found):
            setattr(owner, attribute, before)


def _keep_in_float32(module: Any, dtype: torch.dtype) -> None:
    """Parameters that transformers keeps in float32 in a module of half precision."""
    strict = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    usual = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    names = strict if dtype in (torch.float16, torch.bfloat16) else set[str]()
    names |= usual if dtype == torch.float16 else set[str]()
    if not names:
        return
    parts = [re.escape(n).replace("\\*", ".*") for n in sorted(names)]
    kept = re.compile("|".join(rf"(?:^|\.){part}(?:\.|$)" for part in parts))
    for name, parameter in list(module.named_parameters()):
        if parameter.is_floating_point() and kept.search(name):
            made = nn.Parameter(parameter.to(torch.float32), requires_grad=parameter.requires_grad)
            setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], made)


Read = Callable[[FileTensor, torch.dtype], torch.Tensor]


def fill_kept(module: nn.Module, matched: Matched, names: Iterable[str], read: Read | None = None) -> int:
    """Give the parameters and persistent buffers `names` of a skeleton their bytes; the bytes read. `read` makes a
    tensor of one in files, by default `read_tensor`.

    Tied names share one tensor afterwards, as before. Raises InputError for one that neither the files nor the module
    have, and where a file ends too early.
    """
    state = module.state_dict(keep_vars=True)
    made: dict[int, torch.Tensor] = {}
    nbytes = 0
    for name in names:
        before = state[name]
        found = matched.tensors.get(name)
        if found is None:
            if before.device.type == "meta":
                raise InputError(f"'{name}' is neither in '{matched.files.where}' nor computed by the module")
            continue
        if id(before) not in made:
            made[id(before)] = (read or read_tensor)(found, before.dtype)
            nbytes += found.nbytes
        _set(module, name, before, made)
    return nbytes


def zero_kept(module: nn.Module, names: Iterable[str]) -> None:
    """Give the parameters and persistent buffers `names` of a skeleton zeros where they have no values, with every page
    of them in memory as values would have it."""
    state = module.state_dict(keep_vars=True)
    made: dict[int, torch.Tensor] = {}
    for name in names:
        before = state[name]
        if before.is_meta:
            if id(before) not in made:
                made[id(before)] = torch.empty(before.shape, dtype=before.dtype).zero_()
            _set(module, name, before, made)


def _set(module: nn.Module, name: str, before: torch.Tensor, made: dict[int, torch.Tensor]) -> None:
    """By setattr, which also tells what keeps parameters of its own, such as recurrent layers."""
    content = made[id(before)]
    if isinstance(before, nn.Parameter) and not isinstance(content, nn.Parameter):
        content = nn.Parameter(content, requires_grad=before.requires_grad)
        vars(content).update(vars(before))
        made[id(before)] = content
    setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], content)


def read_tensor(tensor: FileTensor, dtype: torch.dtype) -> torch.Tensor:
    """Its bytes in memory, past the page cache. Raises InputError where a file ends too early."""
    content = torch.empty(tensor.shape, dtype=dtype)
    if not tensor.nbytes:
        return content
    view = content.reshape(-1).view(torch.uint8).numpy().data
    at = 0
    for piece in tensor.pieces:
        with open(piece.path, "rb", buffering=0) as file:
            done = 0
            while done < piece.nbytes:
                target = view[at + done : at + min(piece.nbytes, done + READ_NBYTES)]
                got = os.preadv(file.fileno(), [target], piece.file_offset + done)
                if not got:
                    raise InputError(
                        f"'{piece.path}' ends at byte {piece.file_offset + done}, {tensor.name!r} in it at "
                        f"{piece.file_offset + piece.nbytes}; get the whole file"
                    )
                done += got
            os.posix_fadvise(file.fileno(), piece.file_offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
        at += piece.nbytes
    return content
