"""Compiles the allocator against the torch that is installed, once for each of them, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from ...ir.errors import ExecutionError
from ...ir.paths import cache_dir

_SOURCE = Path(__file__).with_name("allocator.cpp")
_COMPILERS = ("g++", "c++", "clang++")
_TIME_LIMIT_S = 300.0


class NativeUnavailableError(ExecutionError):
    """The allocator cannot be compiled or loaded here; the message says why and what to do."""


def native_library() -> ctypes.PyDLL:
    """The compiled allocator, loaded. Raises NativeUnavailableError; the same answer for the same compiler again."""
    return _load(os.environ.get("CXX", ""))


@cache
def _load(chosen: str) -> ctypes.PyDLL:
    compiler = _compiler(chosen)
    path = cache_dir() / "native" / f"allocator-{_digest(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        return ctypes.PyDLL(str(path))  # its functions are short and keep the interpreter's lock
    except OSError:
        _compile(compiler, path)  # cut short, or of another system that shares the folder
    try:
        return ctypes.PyDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(
            f"the allocator was compiled and cannot be loaded: {error}; use the compiler that PyTorch "
            f"{torch.__version__} was made with, by CXX"
        ) from error


def _compiler(chosen: str) -> list[str]:
    """The command of the compiler: CXX, else the first that is found."""
    for command in [shlex.split(chosen)] if chosen else [[name] for name in _COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    wanted = f"CXX is '{chosen}', which is no command" if chosen else f"none of {', '.join(_COMPILERS)} was found"
    raise NativeUnavailableError(f"there is no C++ compiler: {wanted}; install one, or set CXX to yours")


def _flags(root: Path) -> list[str]:
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    return ["-O2", "-std=c++17", "-fPIC", "-shared", abi, f"-I{root / 'include'}", f"-L{root / 'lib'}"]


def _digest(compiler: list[str]) -> str:
    """What the library depends on: source, torch, compiler, machine."""
    version = _run([*compiler, "--version"])
    abi = torch.compiled_with_cxx11_abi()
    parts = (torch.__version__, str(abi), *compiler, version, platform.machine(), "-O2 -std=c++17")
    return hashlib.sha256(_SOURCE.read_bytes() + "\0".join(parts).encode()).hexdigest()[:24]


def _compile(compiler: list[str], path: Path) -> None:
    """Make `path`, whole or not at all; of two processes that do so at once the later one's file stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".allocator.", dir=path.parent) as folder:
            made = Path(folder) / path.name
            flags = _flags(Path(torch.__file__).parent)
            _run([*compiler, *flags, str(_SOURCE), "-lc10", "-lpthread", "-o", str(made)])
            made.replace(path)
    except OSError as error:
        raise NativeUnavailableError(f"'{path}' cannot be written: {error.strerror or error}") from error


def _run(command: list[str]) -> str:
    """Its output. Raises NativeUnavailableError with the first lines of what it complained of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"'{command[0]}' did not run: {error}; set CXX to a C++17 compiler") from error
    if done.returncode != 0:
        complaint = " / ".join(done.stderr.strip().splitlines()[:3])
        raise NativeUnavailableError(
            f"'{command[0]}' does not compile the allocator for PyTorch {torch.__version__} (status "
            f"{done.returncode}): {complaint}; set CXX to a C++17 compiler"
        )
    return done.stdout
