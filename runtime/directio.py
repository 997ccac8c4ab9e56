"""Files read and written past the page cache, straight from and to the memory of the caller.

The page cache would hold a second copy of what the arena holds, count against the memory limit, and be evicted in
the wrong order. O_DIRECT asks that offsets, addresses and lengths are multiples of a block; what is not passes
through a small aligned buffer.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..ir.errors import ExecutionError

BLOCK = 4096
BOUNCE_NBYTES = 1 << 20
_IDLE_RETRIES = 3


class TransferCancelledError(Exception):
    """A transfer was given up because nobody needs it any more."""


def never() -> bool:
    """The `cancelled` of a transfer that nobody can cancel."""
    return False


class DirectFile:
    """An open file. Reads and writes whole ranges or raises ExecutionError with file, offset, wanted and got bytes.

    `direct` tells whether the filesystem takes O_DIRECT; where not, what was read is dropped from the page cache.
    `nbytes` is the length of a file that is not ours, whose last block may be short; None where all blocks are whole.
    `remedy` says what to do when the file turns out to be shorter. Several threads may use one.
    """

    def __init__(
        self,
        descriptor: int,
        name: str,
        *,
        direct: bool,
        nbytes: int | None = None,
        remedy: str = "remove it so that it is made again",
    ) -> None:
        self.descriptor = descriptor
        self.name = name
        self.direct = direct
        self.nbytes = nbytes
        self.remedy = remedy
        self._spare: list[mmap.mmap] = []

    @classmethod
    def open(cls, path: Path, flags: int = os.O_RDONLY) -> DirectFile:
        """Open `path`, with O_DIRECT where the filesystem takes it. Raises OSError."""
        descriptor, direct = _open_direct(path, flags)
        return cls(descriptor, str(path), direct=direct)

    @classmethod
    def open_whole(cls, path: Path, remedy: str) -> DirectFile:
        """Open a file of any length for reading. Raises OSError."""
        descriptor, direct = _open_direct(path, os.O_RDONLY)
        return cls(descriptor, str(path), direct=direct, nbytes=os.fstat(descriptor).st_size, remedy=remedy)

    @classmethod
    def scratch(cls, folder: Path, nbytes: int) -> DirectFile:
        """A file of `nbytes` without a name, which disappears with the process at the latest. Raises ExecutionError."""
        try:
            descriptor, name = tempfile.mkstemp(prefix=".scratch.", dir=folder)
            os.close(descriptor)
            try:
                descriptor, direct = _open_direct(Path(name), os.O_RDWR)
            finally:
                Path(name).unlink()
        except OSError as error:
            raise ExecutionError(f"no scratch file can be made in '{folder}': {error.strerror}") from error
        file = cls(descriptor, f"scratch file in {folder}", direct=direct)
        try:
            allocate(descriptor, nbytes, folder)
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Close the descriptor; again is allowed."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        while self._spare:
            self._spare.pop().close()

    def __del__(self) -> None:
        self.close()

    def read_into(
        self, target: memoryview, offset: int, *, chunk: int = BOUNCE_NBYTES, cancelled: Callable[[], bool] = never
    ) -> None:
        """Fill `target` with the bytes from `offset` on, in requests of `chunk` bytes (a multiple of the block).

        Asks `cancelled` between requests and raises TransferCancelledError when it says so.
        """
        lead = -offset % BLOCK  # bytes to the first block boundary of the file
        if len(target) >= lead + BLOCK and (_address(target) + lead) % BLOCK == 0:
            if lead:
                self._read_bounced(target[:lead], offset, cancelled)
            self._read_direct(target[lead:], offset + lead, chunk, cancelled)
        else:
            self._read_bounced(target, offset, cancelled)

    def _read_direct(self, target: memoryview, offset: int, chunk: int, cancelled: Callable[[], bool]) -> None:
        whole = len(target) // BLOCK * BLOCK
        tail = len(target) - whole
        for start in range(0, whole, chunk):
            _check(cancelled)
            stop = min(start + chunk, whole)
            if stop < whole or not tail:
                self._read_blocks([target[start:stop]], offset + start)
                continue
            with self._bounce() as bounce:  # the last block belongs to us in part: the rest of it must not be written
                self._read_blocks([target[start:stop], bounce[:BLOCK]], offset + start)
                target[whole:] = bounce[:tail]

    def _read_bounced(self, target: memoryview, offset: int, cancelled: Callable[[], bool]) -> None:
        with self._bounce() as bounce:
            done = 0
            while done < len(target):
                _check(cancelled)
                skip = (offset + done) % BLOCK
                count = min(len(target) - done, len(bounce) - skip)
                self._read_blocks([bounce[: -(-(skip + count) // BLOCK) * BLOCK]], offset + done - skip)
                _copy(target[done : done + count], bounce[skip : skip + count])
                done += count

    def _read_blocks(self, buffers: list[memoryview], offset: int) -> None:
        """Fill whole blocks, up to the end of the file; a short read goes on at the last whole block it reached."""
        wanted = sum(len(b) for b in buffers)
        if self.nbytes is not None:
            wanted = min(wanted, self.nbytes - offset)
        done, idle = 0, 0
        while done < wanted:
            try:
                got = os.preadv(self.descriptor, _from(buffers, done), offset + done)
            except OSError as error:
                raise ExecutionError(
                    f"reading '{self.name}' at offset {offset + done} failed: {error.strerror} (wanted {wanted} bytes, "
                    f"got {done}); check the disk, then run again"
                ) from error
            idle = 0 if got >= BLOCK else idle + 1
            if idle > _IDLE_RETRIES:
                raise ExecutionError(
                    f"reading '{self.name}' at offset {offset + done} gives no more bytes: wanted {wanted}, got "
                    f"{done + got}; the file was cut short, {self.remedy}"
                )
            done = wanted if done + got >= wanted else done + got // BLOCK * BLOCK
        if not self.direct:
            os.posix_fadvise(self.descriptor, offset, wanted, os.POSIX_FADV_DONTNEED)

    def write_from(
        self, source: memoryview, offset: int, *, chunk: int = BOUNCE_NBYTES, cancelled: Callable[[], bool] = never
    ) -> None:
        """Write `source` at `offset`, a block boundary; the last block is filled up with zeros."""
        assert offset % BLOCK == 0, offset
        whole = len(source) // BLOCK * BLOCK if _address(source) % BLOCK == 0 else 0
        for start in range(0, whole, chunk):
            _check(cancelled)
            self._write_blocks(source[start : min(start + chunk, whole)], offset + start)
        done = whole
        while done < len(source):
            _check(cancelled)
            with self._bounce() as bounce:
                count = min(len(source) - done, len(bounce))
                padded = -(-count // BLOCK) * BLOCK
                _copy(bounce[:count], source[done : done + count])
                bounce[count:padded] = bytes(padded - count)
                self._write_blocks(bounce[:padded], offset + done)
                done += count
        if not self.direct and len(source):
            os.fdatasync(self.descriptor)
            os.posix_fadvise(self.descriptor, offset, len(source), os.POSIX_FADV_DONTNEED)

    def _write_blocks(self, source: memoryview, offset: int) -> None:
        done, idle = 0, 0
        while done < len(source):
            try:
                got = os.pwritev(self.descriptor, [source[done:]], offset + done)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                advice = "free space on that disk" if full else "check the disk"
                raise ExecutionError(
                    f"writing '{self.name}' at offset {offset + done} failed: {error.strerror} (wanted {len(source)} "
                    f"bytes, wrote {done}); {advice}, then run again"
                ) from error
            idle = 0 if got >= BLOCK else idle + 1
            if idle > _IDLE_RETRIES:
                raise ExecutionError(
                    f"writing '{self.name}' at offset {offset + done} takes no more bytes: wanted {len(source)}, wrote "
                    f"{done + got}; check the disk, then run again"
                )
            done += got // BLOCK * BLOCK

    @contextmanager
    def _bounce(self) -> Generator[memoryview, None, None]:
        """An aligned buffer; kept for the next one who needs it."""
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = mmap.mmap(-1, BOUNCE_NBYTES)
        with memoryview(buffer) as view:
            yield view
        self._spare.append(buffer)


def allocate(descriptor: int, nbytes: int, folder: Path) -> None:
    """Make a new file `nbytes` long with its blocks reserved; ExecutionError with needed and free bytes if full."""
    free = free_nbytes(folder)
    if nbytes > free:
        raise disk_full(folder, nbytes, free)
    if nbytes == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ExecutionError(f"no {nbytes} bytes can be reserved in '{folder}': {error.strerror}") from error
        raise disk_full(folder, nbytes, free_nbytes(folder)) from error


def free_nbytes(folder: Path) -> int:
    """Bytes that an unprivileged user may still write to the filesystem of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def disk_full(folder: Path, needed: int, free: int) -> ExecutionError:
    """The error for a filesystem without room."""
    return ExecutionError(
        f"'{folder}' needs {needed} bytes of disk, {free} bytes are free; free some, or set TENSORSTOW_CACHE to a "
        "folder on another disk"
    )


def _open_direct(path: Path, flags: int) -> tuple[int, bool]:
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666), False


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise TransferCancelledError


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if len(view) else 0


def _from(buffers: list[memoryview], skip: int) -> list[memoryview]:
    """The buffers without their first `skip` bytes."""
    if not skip:
        return buffers
    rest: list[memoryview] = []
    for buffer in buffers:
        if skip < len(buffer):
            rest.append(buffer[skip:])
        skip = max(0, skip - len(buffer))
    return rest


def _copy(target: memoryview, source: memoryview) -> None:
    """Copy without the interpreter's lock, which a memoryview assignment would hold."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
