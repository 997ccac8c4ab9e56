"""`python -m tests.fuzz READER`: more mutants than the tests make; prints the seed of each that does harm."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from tests.fuzz.guard import harm_of
from tests.fuzz.readers import READERS


def main() -> None:
    """Make mutants, read them, and say what went wrong, a line for each kind of harm."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in READERS if given.reader == "all" else [given.reader]:
        found = harms(name, given.seed, given.count)
        print(f"{name}: {given.count} mutants, {sum(found.values())} did harm")  # noqa: T201
        for harm, count in found.most_common(20):
            print(f"  {count} times: {harm}")  # noqa: T201


def harms(name: str, first: int, count: int) -> Counter[str]:
    """Kinds of harm among mutants of one reader, with the first seed that did it."""
    reader, found, seeds = READERS[name], Counter[str](), dict[str, int]()
    with tempfile.TemporaryDirectory() as folder:
        good, path = reader.good(), Path(folder) / f"file{reader.suffix}"
        path.write_bytes(good)
        reader.beside(path)
        reader.read(path)
        for seed in range(first, first + count):
            path.write_bytes(reader.mutant(np.random.default_rng([seed, *name.encode()]), good))
            harm = harm_of(reader.read, path, Path(folder))[:100]
            if harm:
                seeds.setdefault(harm, seed)
                found[harm] += 1
    return Counter({f"{harm} (seed {seeds[harm]})": n for harm, n in found.items()})


if __name__ == "__main__":
    main()
