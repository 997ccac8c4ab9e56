"""Reads arrays by name from .npz archives that anyone may have written: nothing is allocated that is not there.

An archive says twice how long an array is: in the zip directory, which zipfile reads up to and no further, and in the
array's own header, by which numpy allocates before it reads. Both are looked at, and compared, before any array is
read.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .sizes import format_size

NO_ARCHIVE = (
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
    AttributeError,
    IndexError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for a file that is no archive, or a damaged one: a ValueError that speaks of pickles for
arrays of Python objects, which are not read. RuntimeError includes what is nested too deep."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


def read_npz(
    path: Path, *, most_nbytes: int, names: Collection[str] | None = None
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]] | None:
    """The arrays of an archive, only those of `names` where given, and the names of all; None for one bare array.

    Raises OSError where the file cannot be read, one of `NO_ARCHIVE` where it is none, and InputError where an array is
    named twice, is not as long as it says, or all together are longer than `most_nbytes`.
    """
    with path.open("rb") as file:
        if file.read(4) in _ZIP:
            _check_sizes(path, most_nbytes, names)
    opened: Any = np.load(path, mmap_mode="r", allow_pickle=False)  # a bare array is mapped, not read
    if isinstance(opened, np.ndarray):
        return None
    with opened as archive:
        found = tuple(str(n) for n in archive.files)
        return {n: np.asarray(archive[n]) for n in found if names is None or n in names}, found


def _check_sizes(path: Path, most_nbytes: int, names: Collection[str] | None) -> None:
    total, seen = 0, set[str]()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in seen:
                raise InputError(f"{path}: array '{name}' is there twice; the file is damaged or made to mislead")
            seen.add(name)
            if names is not None and name not in names:
                continue
            nbytes = _stated_nbytes(archive, info)
            if nbytes is not None and nbytes != info.file_size:
                raise InputError(
                    f"{path}: array '{name}' says that it has {nbytes} bytes with its header, the archive says "
                    f"{info.file_size}; the file is damaged"
                )
            total += info.file_size
            if total > most_nbytes:
                raise InputError(
                    f"{path}: its arrays up to '{name}' take {format_size(total)} unpacked, and at most "
                    f"{format_size(most_nbytes)} may be read; split the file or free memory"
                )


def _stated_nbytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int | None:
    """Bytes of header and array by the array's own header; None for objects, which numpy refuses by itself."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        if dtype.hasobject:
            return None
        return member.tell() + prod(shape) * dtype.itemsize
