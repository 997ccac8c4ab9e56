"""Parts of an operator compute the bits of the whole, from aligned ranges of the same blob."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstow.ir.errors import InputError
from tensorstow.planner.onnx import Lowered, SplitAxis, lower_onnx, split, splittable
from tensorstow.planner.onnx.split_axis import part_ranges
from tests.models import write_cnn, write_gpt, write_mlp
from tests.reference import run_lowered


def split_all(lowered: Lowered, most: int) -> Lowered:
    return split(lowered, {op: min(most, axis.units // axis.granule) for op, axis in splittable(lowered).items()})


def assert_parts_cover(whole: Lowered, cut: Lowered) -> None:
    """Parts start at pages of their blob, and every blob is still covered without a hole."""
    covered: dict[str, list[tuple[int, int]]] = {}
    for storage in cut.graph.storages:
        if storage.blob is not None:
            covered.setdefault(storage.blob, []).append((storage.blob_offset, storage.blob_offset + storage.nbytes))
            if storage.id not in whole.graph.storage:
                assert storage.blob_offset % 4096 == 0
    assert set(covered) == set(cut.program.blob)
    for blob, ranges in covered.items():
        at = 0
        for lo, hi in sorted(ranges):
            assert lo <= at
            at = max(at, hi)
        assert at == cut.program.blob[blob].nbytes
    for tensor in cut.graph.tensors:
        if tensor.storage is not None:
            assert tensor.offset % 64 == 0
            assert tensor.offset + tensor.nbytes <= cut.graph.storage[tensor.storage].nbytes
    assert set(cut.program.kernels) == set(cut.graph.operator)
    assert set(cut.program.kernels.values()) == set(cut.program.models)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("most", [2, 3, 8])
def test_convolutions(tmp_path: Path, batch: int, most: int) -> None:
    lowered = lower_onnx(write_cnn(tmp_path / "cnn.onnx", batch=batch), cache=tmp_path)
    cut = split_all(lowered, most)
    assert_parts_cover(lowered, cut)
    joins = [o for o in cut.graph.operators if o.id.endswith(":join")]
    assert bool(joins) == (batch > 1)
    image = {"image": np.random.default_rng(0).standard_normal((batch, 3, 32, 32), np.float32)}
    assert run_lowered(cut, image)[0].tobytes() == run_lowered(lowered, image)[0].tobytes()


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("most", [2, 3, 7])
def test_products(tmp_path: Path, rows: int, most: int) -> None:
    lowered = lower_onnx(write_mlp(tmp_path / "mlp.onnx", width=640, layers=3, rows=rows), cache=tmp_path)
    cut = split_all(lowered, most)
    assert_parts_cover(lowered, cut)
    x = {"x": np.random.default_rng(0).standard_normal((rows, 640), np.float32)}
    assert run_lowered(cut, x)[0].tobytes() == run_lowered(lowered, x)[0].tobytes()
    if rows == 1:
        assert all(a.contiguous_output for a in splittable(lowered).values())
        # Parts write slices of the output: the next operator reads it whole, and nothing joins.
        assert {cut.graph.tensor[o.outputs[0]].storage for o in cut.graph.operators if o.id.startswith("fc2[")} == {"y"}


@pytest.mark.parametrize("sequence", [1, 8])
def test_a_tied_table_is_cut_for_the_product_and_whole_for_the_table(tmp_path: Path, sequence: int) -> None:
    path = write_gpt(tmp_path / "gpt.onnx", layers=1, width=192, heads=4, vocabulary=1003, sequence=sequence, tied=True)
    lowered = lower_onnx(path, cache=tmp_path)
    cut = split_all(lowered, 4)
    assert_parts_cover(lowered, cut)
    assert "wte" in cut.graph.storage
    assert sum(s.blob == "wte" for s in cut.graph.storages) == 5
    tokens = {"tokens": np.arange(sequence, dtype=np.int64)[None] + 900}
    assert run_lowered(cut, tokens)[0].tobytes() == run_lowered(lowered, tokens)[0].tobytes()


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    lowered = lower_onnx(write_mlp(tmp_path / "mlp.onnx", width=256, layers=1), cache=tmp_path)
    with pytest.raises(InputError, match="no such operator"):
        split(lowered, {"nothing": 2})
    axis = splittable(lowered)["fc0"]
    with pytest.raises(InputError, match=r"cannot be split into 1000 parts"):
        split(lowered, {"fc0": 1000})
    assert split(lowered, {"fc0": 1}) == lowered
    assert axis == SplitAxis(256, 16, True, "w0", 1024)


@given(units=st.integers(1, 5000), granule=st.integers(1, 200), parts=st.integers(1, 50))
def test_part_ranges_cover_the_units_in_granules(units: int, granule: int, parts: int) -> None:
    parts = max(1, min(parts, units // granule))
    ranges = part_ranges(SplitAxis(units, granule, True, "w", 4), parts)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == units
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert all(lo % granule == 0 for lo, _ in ranges)
    if units >= granule:
        sizes = [hi - lo for lo, hi in ranges]
        assert min(sizes) >= granule
        assert max(sizes[:-1], default=0) - min(sizes) <= granule
