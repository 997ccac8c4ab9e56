"""Mutants of good files: each is read or refused, in little memory, and no other file is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.guard import harm_of
from tests.fuzz.readers import READERS

MUTANTS = {"plan": 150, "onnx": 400, "inputs": 300, "trace": 300, "safetensors": 500}
"""Of each kind; `python -m tests.fuzz READER --count N --seed S` makes more."""


@pytest.mark.parametrize("name", READERS)
def test_mutants_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    good, path = reader.good(), tmp_path / f"file{reader.suffix}"
    path.write_bytes(good)
    reader.beside(path)
    reader.read(path)  # what mutants are made of is read
    for seed in range(MUTANTS[name]):
        path.write_bytes(reader.mutant(np.random.default_rng([seed, *name.encode()]), good))
        harm = harm_of(reader.read, path, tmp_path)
        assert not harm, f"seed {seed}: {harm}"
