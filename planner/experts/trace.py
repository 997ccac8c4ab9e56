"""Routing traces: which experts each token asked for in each layer, and the compact file that holds them.

The file is an npz archive, read without pickles:

- `experts`: whole numbers [tokens, layers, top_k], in the order of the gates, the greatest first. Where a token asked
  for fewer, the type's greatest number stands (255 of uint8), or -1 in a signed type.
- `offsets` (optional): int64 [prompts + 1], the first token of each prompt, and the number of tokens.
- `dataset` (optional): a word for each prompt, its class.
- `gate_probs_u8` (optional): uint8, shaped as `experts`, round(255 p) of each gate; or `gates`: float32.
- `expert_nbytes` (optional): int64 [layers, experts], where experts differ in size.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import InfeasibleError, InputError
from ...ir.npz import NO_ARCHIVE, read_npz
from ...ir.paths import write_atomic
from ...ir.sizes import format_size
from ...solvers.caching.problem import NONE, Ids, Ints, Requests

ARRAYS = ("experts", "offsets", "dataset", "gate_probs_u8", "gates", "expert_nbytes")
"""What is read of the file."""
LARGEST_SUM = 1 << 60
"""Bytes of all experts together, an exbibyte, that are counted with: a few times as many are still 64 bits."""
MOST_NBYTES = 1 << 30
"""The longest trace that is read, unpacked. A billion ids of one byte: months of tokens; in numbers of eight bytes, as
they are looked at, it fits the memory of a workstation."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Routing of prompts that follow one another.

    `ids` is int32 [tokens, layers, top_k], -1 for no expert; `offsets` int64 [prompts + 1]; `classes` a word for each
    prompt, '' where it is not known; `gates` float32, shaped as `ids`, or None; `sizes` int64 [layers, experts] in
    bytes, or None where all experts are alike.
    """

    ids: Ids
    experts: int
    offsets: Ints
    classes: tuple[str, ...]
    gates: NDArray[np.float32] | None = None
    sizes: Ints | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all prompts together."""
        return self.ids.shape[0]

    @property
    def layers(self) -> int:
        """Layers that have experts."""
        return self.ids.shape[1]

    @property
    def top_k(self) -> int:
        """Experts that a token asks for at most in a layer."""
        return self.ids.shape[2]

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.classes)

    def requests(self, *, cold: bool = False) -> Requests:
        """The trace as a solver sees it. `cold`: caches are empty at the start of every prompt, not of the first only.

        Sizes are 1 where all experts are alike.
        """
        begins = None
        if cold:
            begins = np.zeros(self.tokens, dtype=np.bool_)
            begins[self.offsets[:-1]] = True
        sizes = np.ones((self.layers, self.experts), dtype=np.int64) if self.sizes is None else self.sizes
        return Requests(self.ids, sizes, self.gates, begins)

    def take(self, prompts: NDArray[np.int64] | list[int]) -> Trace:
        """The same with some prompts only, in the order given."""
        spans = [slice(int(self.offsets[p]), int(self.offsets[p + 1])) for p in prompts]
        empty = slice(0, 0)
        lengths = [s.stop - s.start for s in spans]
        return replace(
            self,
            ids=np.concatenate([self.ids[s] for s in spans or [empty]]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            classes=tuple(self.classes[p] for p in prompts),
            gates=None if self.gates is None else np.concatenate([self.gates[s] for s in spans or [empty]]),
        )

    def of_used(self) -> Trace:
        """The same of the experts that are asked for alone, by layer numbered in their order: the memory and time of a
        replay go with these then, not with all that there are. Nobody ever keeps or loads the others."""
        used = np.zeros((self.layers, self.experts), dtype=np.bool_)
        for layer in range(self.layers):
            ids = self.ids[:, layer]
            used[layer, ids[ids != NONE]] = True
        most = max(1, int(used.sum(axis=1).max()))
        if most == self.experts:
            return self
        number = np.cumsum(used, axis=1, dtype=np.int32) - 1
        layers = np.arange(self.layers)[None, :, None]
        ids = np.where(self.ids == NONE, NONE, number[layers, self.ids]).astype(np.int32)
        kept = np.argsort(~used, axis=1, kind="stable")[:, :most]
        sizes = None if self.sizes is None else np.take_along_axis(self.sizes, kept, axis=1)
        return replace(self, ids=ids, experts=most, sizes=sizes)

    def check_capacity(self, capacity: int) -> None:
        """Raises InfeasibleError where a cache of `capacity` (experts; bytes where sizes differ) cannot hold a set."""
        least = self.requests().least_capacity()
        layer = int(np.argmax(least))
        if capacity >= int(least[layer]):
            return
        have, need = f"{capacity} experts", f"{least[layer]} experts"
        if self.sizes is not None:
            have, need = format_size(capacity), format_size(int(least[layer]))
        nbytes = None if self.sizes is None else int(least[layer])
        raise InfeasibleError(
            f"a cache of {have} cannot hold what one token asks for in layer {layer}, {need}; "
            f"give --cache {least[layer]} or more",
            smallest_nbytes=nbytes,
        )


def read_trace(path: Path, experts: int) -> Trace:
    """Read a trace of layers with `experts` experts each.

    Raises InputError for a file that is no trace, for ids that are not below `experts`, for an expert twice in a set,
    for layers of different width, for prompts that are empty or do not cover the tokens, and for gates or sizes that do
    not match.
    """
    if experts < 1:
        raise InputError(f"--experts {experts}: a layer has at least one expert")
    arrays, names = _load(path)
    if "experts" not in arrays:
        have = ", ".join(sorted(names)) or "nothing"
        raise InputError(f"{path}: there is no array 'experts' [tokens, layers, top_k]; the file holds {have}")
    ids = _ids(path, arrays["experts"], experts)
    offsets = _offsets(path, arrays.get("offsets"), ids.shape[0])
    classes = _classes(path, arrays.get("dataset"), len(offsets) - 1)
    trace = Trace(ids, experts, offsets, classes, _gates(path, arrays, ids), _sizes(path, arrays, ids, experts))
    _check_sets(path, trace)
    return trace


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace, in the narrowest type that holds its ids. Raises InputError where the file cannot be written."""
    narrow = next(t for t in (np.uint8, np.uint16, np.uint32) if trace.experts <= np.iinfo(t).max)
    ids = np.where(trace.ids == NONE, np.iinfo(narrow).max, trace.ids).astype(narrow)
    arrays: dict[str, Any] = {"experts": ids, "offsets": trace.offsets, "dataset": np.array(trace.classes)}
    if trace.gates is not None:
        arrays["gate_probs_u8"] = np.clip(np.rint(255 * trace.gates), 0, 255).astype(np.uint8)
    if trace.sizes is not None:
        arrays["expert_nbytes"] = trace.sizes
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    try:
        write_atomic(path, content.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _load(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """The arrays that a trace may have, and the names of all that there are."""
    try:
        read = read_npz(path, most_nbytes=MOST_NBYTES, names=ARRAYS)
        if read is None:
            raise InputError(f"{path}: one bare array; a trace is an npz archive with an array 'experts'")
        return read
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not an npz archive: {error}; write it with numpy.savez_compressed") from error
    except NO_ARCHIVE as error:
        if not zipfile.is_zipfile(path):  # numpy takes such a file for a pickle
            raise InputError(f"{path}: not an npz archive; write it with numpy.savez_compressed") from error
        # A ragged list of lists is stored as Python objects, which only a pickle could bring back.
        hint = "layers of different width are stored so: fill sets up with the type's greatest number instead"
        if "pickle" not in str(error):
            hint = "write it with numpy.savez_compressed"
        raise InputError(f"{path}: not a trace: {error}; {hint}") from error


def _ids(path: Path, found: NDArray[Any], experts: int) -> Ids:
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise InputError(
            f"{path}: 'experts' is {found.dtype} with shape {found.shape}; "
            "it must be whole numbers [tokens, layers, top_k], every layer as wide"
        )
    if 0 in found.shape:
        raise InputError(f"{path}: 'experts' has shape {found.shape}: there is nothing in it")
    wide = found.astype(np.int64)
    greatest = int(np.iinfo(found.dtype).max)
    absent = wide < 0 if found.dtype.kind == "i" else (wide == greatest) & (experts <= greatest)
    wrong = (~absent & (wide >= experts)) | (wide < -1)
    if bool(wrong.any()):
        token, layer, rank = (int(x) for x in np.argwhere(wrong)[0])
        asks = f"{path}: token {token} asks layer {layer} for expert {wide[token, layer, rank]}"
        if wide[token, layer, rank] < 0:
            raise InputError(f"{asks}; experts are numbered from 0, and -1 stands for none: mend the trace")
        raise InputError(
            f"{asks}, and {experts} experts end at {experts - 1}; take a trace of this model, or give --experts "
            f"{int(wide[~absent].max()) + 1} or more"
        )
    return np.where(absent, NONE, wide).astype(np.int32)


def _offsets(path: Path, found: NDArray[Any] | None, tokens: int) -> Ints:
    if found is None:
        return np.array([0, tokens], dtype=np.int64)
    if found.ndim != 1 or len(found) < 2 or found.dtype.kind not in "iu":
        raise InputError(f"{path}: 'offsets' has shape {found.shape}; it must be whole numbers [prompts + 1]")
    offsets = found.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != tokens:
        raise InputError(
            f"{path}: 'offsets' runs from {offsets[0]} to {offsets[-1]}; it must run from 0 to {tokens}, the tokens"
        )
    for p in np.flatnonzero(np.diff(offsets) <= 0).tolist():
        what = "is empty" if offsets[p] == offsets[p + 1] else "ends before it begins"
        raise InputError(f"{path}: prompt {p} {what}: tokens {offsets[p]} to {offsets[p + 1]}; leave it out")
    return offsets


def _classes(path: Path, found: NDArray[Any] | None, prompts: int) -> tuple[str, ...]:
    if found is None:
        return ("",) * prompts
    if found.shape != (prompts,):
        raise InputError(
            f"{path}: 'dataset' has shape {found.shape}, and there are {prompts} prompts; give a word each"
        )
    return tuple(str(word) for word in found.tolist())


def _gates(path: Path, arrays: dict[str, NDArray[Any]], ids: Ids) -> NDArray[np.float32] | None:
    name = next((n for n in ("gates", "gate_probs_u8") if n in arrays), None)
    if name is None:
        return None
    found = arrays[name]
    if found.shape != ids.shape or found.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: '{name}' is {found.dtype} {found.shape}, and 'experts' {ids.shape}: one gate an expert"
        )
    scale = np.float32(255 if name == "gate_probs_u8" else 1)
    values: NDArray[np.float32] = (found.astype(np.float32) / scale).astype(np.float32)
    if not bool(np.isfinite(values).all()) or float(values.min()) < 0:
        raise InputError(f"{path}: '{name}' holds a gate that is negative or not a number")
    return values


def _sizes(path: Path, arrays: dict[str, NDArray[Any]], ids: Ids, experts: int) -> Ints | None:
    found = arrays.get("expert_nbytes")
    if found is None:
        return None
    if found.shape != (ids.shape[1], experts) or found.dtype.kind not in "iu":
        raise InputError(
            f"{path}: 'expert_nbytes' is {found.dtype} {found.shape}; give whole numbers [{ids.shape[1]}, {experts}]"
        )
    if int(found.min()) < 1:
        raise InputError(f"{path}: 'expert_nbytes' holds {found.min()}; an expert has at least one byte")
    total = sum(int(size) for size in found.flat)
    if total > LARGEST_SUM:
        raise InputError(
            f"{path}: 'expert_nbytes' adds up to {total} bytes, more than the {LARGEST_SUM} that are counted with; "
            "give sizes in bytes"
        )
    return found.astype(np.int64)


def _check_sets(path: Path, trace: Trace) -> None:
    for i in range(trace.top_k):
        for j in range(i):
            twice = (trace.ids[:, :, i] == trace.ids[:, :, j]) & (trace.ids[:, :, i] != NONE)
            if bool(twice.any()):
                token, layer = (int(x) for x in np.argwhere(twice)[0])
                raise InputError(
                    f"{path}: token {token} asks layer {layer} twice for expert {trace.ids[token, layer, i]}; "
                    "a set holds an expert once"
                )
