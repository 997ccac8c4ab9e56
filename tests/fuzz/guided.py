"""`python -m tests.fuzz.guided READER [libFuzzer's options]`: mutants that are led by what they reach.

Needs atheris, which is no dependency of ours (`pip install atheris`; CPython 3.11 to 3.13 on Linux). It starts from the
good file and the hostile ones, and stops at the first harm, with the file that did it: `-max_total_time=60` for a
minute.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

OURS = ["tensorstow.ir", "tensorstow.planner.onnx", "tensorstow.planner.pytorch", "tensorstow.planner.experts"]
"""Where the readers are: what mutants reach is looked at there."""


def main(name: str, options: list[str]) -> None:
    """Fuzz one reader until an option of libFuzzer's ends it."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=OURS):
        corpus, guard, readers = (import_module(f"tests.fuzz.{m}") for m in ("corpus", "guard", "readers"))
    if name not in readers.READERS:
        sys.exit(f"'{name}' is no reader; there are: {', '.join(readers.READERS)}")
    reader: Any = readers.READERS[name]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        seeds, path = folder / "seeds", folder / "files" / f"file{reader.suffix}"
        seeds.mkdir()
        path.parent.mkdir()
        (seeds / "good").write_bytes(reader.good())
        reader.beside(path)
        for number, write in enumerate(corpus.CORPUS[name].values()):
            write(path)
            path.rename(seeds / str(number))
        reader.beside(path)

        def one(content: bytes) -> None:
            path.write_bytes(content)
            harm = guard.harm_of(reader.read, path, path.parent)
            if harm:
                raise AssertionError(harm)

        atheris.Setup([sys.argv[0], "-rss_limit_mb=8192", *options, str(seeds)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("which reader? plan, onnx, inputs, trace or safetensors")
    main(sys.argv[1], sys.argv[2:])
