"""Example inputs of Hugging Face modules: what a pass over a prompt takes, and what a pass of decoding takes."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]
from torch.utils._pytree import tree_map

from ...ir.errors import InputError
from .hf_positions import check_positions

T = TypeVar("T")

PIXELS = 224
"""Side of a picture where a config names none, as networks without positions have it."""


def example_inputs(
    module: nn.Module, *, batch: int = 1, length: int = 1, context: int = 0, encoded: int = 0, logits: int = 0
) -> dict[str, Any]:
    """Keyword arguments of one pass of a transformers module, of zeros.

    `length` tokens in each of `batch` rows are read in the pass, after `context` tokens whose keys and values (or
    states) are in a cache: with 0 the pass makes the cache. An encoder also encodes `encoded` tokens, with 0 as many as
    the decoder reads, or the one length of sound that it takes; if there is a context, its encoding is given. Logits
    are computed of the last `logits` positions, as text generation has it with 1; of all with 0. Of a vision model only
    `batch` counts. Raises InputError for a module that takes something else, and for more tokens than it has positions.
    """
    for name, value, least in (
        ("batch", batch, 1),
        ("length", length, 1),
        ("context", context, 0),
        ("encoded", encoded, 0),
        ("logits", logits, 0),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    if encoded and not encodes_text(module):
        raise InputError(f"{type(module).__name__} has no encoder that reads tokens; leave encoded ({encoded}) away")
    if logits and not keeps_logits(module):
        raise InputError(
            f"{type(module).__name__} computes the logits of all positions that it reads; leave logits ({logits}) away"
        )
    config: Any = module.config
    main = str(getattr(module, "main_input_name", "input_ids"))
    if main == "pixel_values":
        return {main: _picture(config, batch, _dtype(module))}
    if main == "input_ids" or getattr(config, "is_encoder_decoder", False):
        check_positions(module, context + length, (encoded or context or length) if main == "input_ids" else 0)
    found = (
        _decoding(module, config, main, batch, length, context, encoded)
        if context
        else _prompt(module, config, main, batch, length, encoded)
    )
    return {**found, LOGITS: logits} if logits else found


LOGITS = "logits_to_keep"
"""The argument by which a forward of transformers is told of how many last positions to compute logits."""


def encodes_text(module: nn.Module) -> bool:
    """Whether it has an encoder, which reads tokens, beside a decoder."""
    config: Any = module.config
    return bool(getattr(config, "is_encoder_decoder", False)) and getattr(module, "main_input_name", "") == "input_ids"


def keeps_logits(module: nn.Module) -> bool:
    """Whether it can be told of how many last positions to compute logits, as text generation tells it."""
    return _takes(module, LOGITS)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _picture(config: Any, batch: int, dtype: torch.dtype) -> torch.Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or PIXELS
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return _zeros((batch, getattr(vision, "num_channels", 3), height, width), dtype)


def _prompt(module: nn.Module, config: Any, main: str, batch: int, length: int, encoded: int) -> dict[str, Any]:
    tokens = (batch, length)
    if main == "input_ids":
        found = {main: _zeros((batch, encoded or length), torch.int64)}
    elif main == "input_features":
        found = {main: _zeros(_sound(module, config, batch), _dtype(module))}
    elif main == "input_values":
        found = {main: _zeros(tokens, _dtype(module))}
    else:
        raise InputError(
            f"{type(module).__name__} takes '{main}', of which no example is known here; give it with a callable that "
            "returns (module, example_inputs)"
        )
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = _zeros(tokens, torch.int64)
    return found


def _sound(module: nn.Module, config: Any, batch: int) -> tuple[int, ...]:
    """Of a spectrogram: bins by frames, as many as the encoder's positions after its strides."""
    bins, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if bins is None or positions is None:
        raise InputError(
            f"the config of {type(module).__name__} does not tell num_mel_bins and max_source_positions, so no example "
            "of its input_features can be made; give one with a callable that returns (module, example_inputs)"
        )
    return batch, bins, 2 * positions


def _decoding(
    module: nn.Module, config: Any, main: str, batch: int, length: int, context: int, encoded: int
) -> dict[str, Any]:
    """What a pass over `context` tokens leaves, by running it on tensors without values, and `length` tokens more."""
    if not _takes(module, "use_cache"):
        raise InputError(f"{type(module).__name__} keeps no cache of what it has read; give it no context")
    left = _run_fake(module, {**_prompt(module, config, main, batch, context, encoded), "use_cache": True})
    cache = next((n for n in ("past_key_values", "cache_params") if getattr(left, n, None) is not None), None)
    if cache is None:
        raise InputError(f"{type(module).__name__} returns no cache of what it has read; give it no context")
    found: dict[str, Any] = {cache: _materialised(getattr(left, cache))}
    tokens = _zeros((batch, length), torch.int64)
    if not getattr(config, "is_encoder_decoder", False):
        return {"input_ids": tokens, **found}
    from transformers.modeling_outputs import BaseModelOutput

    read = BaseModelOutput(last_hidden_state=_materialised(left.encoder_last_hidden_state))
    return {"decoder_input_ids": tokens, "encoder_outputs": read, **found}


def _run_fake(module: Any, inputs: Mapping[str, Any]) -> Any:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.no_grad(), _batched_experts(module):
            fakes = {n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for n, t in state.items()}
            tensors = {n: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
            return functional_call(module, fakes, args=(), kwargs=tensors, tie_weights=True)
    except Exception as error:
        raise InputError(
            f"no cache for {type(module).__name__} can be made without running it ({str(error).splitlines()[0:1]}); "
            "give one with a callable that returns (module, example_inputs)"
        ) from error


@contextmanager
def _batched_experts(module: Any) -> Generator[None]:
    """The one way to run experts that says what it makes for every type, without values; restored afterwards."""
    before = module.get_experts_implementation() if hasattr(module, "get_experts_implementation") else None
    if before is None or all(v is None for v in before.values()):
        yield
        return
    module.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        module.set_experts_implementation(before)


def _materialised(value: T) -> T:
    """The same structure, its tensors without values as zeros; a cache, which is no structure to torch, in place."""
    if isinstance(value, torch.Tensor):
        return _zeros(tuple(value.shape), value.dtype)  # pyright: ignore[reportReturnType]
    if isinstance(value, (tuple, list, dict)) or not hasattr(value, "__dict__"):
        return tree_map(_held, value)
    for name, held in list(vars(value).items()):
        setattr(value, name, _held(held))
    return value


def _held(value: object) -> object:
    return _materialised(value) if _holds(value) else value


def _holds(value: object) -> bool:
    """Whether to look for tensors in it: of the objects only those of transformers, which caches are made of."""
    own = type(value).__module__.startswith("transformers.") and "config" not in type(value).__module__
    return isinstance(value, (torch.Tensor, tuple, list, dict)) or own


def _takes(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros whose pages the system makes when they are touched: a long cache takes no memory until it is used."""
    nbytes = prod(shape) * dtype.itemsize
    if not nbytes:
        return torch.zeros(shape, dtype=dtype)
    return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).reshape(shape)
