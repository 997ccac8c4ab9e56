"""Tests of tensorstow/module_arrays.py: arrays as inputs of a module."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.module_arrays import fresh_inputs
from tensorstow.modules import ModuleModel


class Takes(nn.Module):
    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return x if scale is None else x * scale


def model(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3)) -> ModuleModel:
    return ModuleModel("m", Takes(), (torch.zeros(shape, dtype=dtype),), {})


def given(array: Any, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    args, kwargs = fresh_inputs(model(dtype, shape), {"x": array})
    assert not kwargs
    return args[0]


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5


@pytest.mark.parametrize(
    "array",
    [VALUES, VALUES.astype(">f4"), VALUES[::-1, ::-1].copy()[::-1, ::-1], np.asfortranarray(VALUES)],
    ids=["as it is", "big-endian", "backwards", "by columns"],
)
def test_arrays_of_every_layout(array: Any) -> None:
    assert torch.equal(given(array), torch.from_numpy(VALUES))


def test_what_a_pass_writes_is_not_the_callers() -> None:
    array = VALUES.copy()
    array.setflags(write=False)
    given(array).zero_()
    assert (array == VALUES).all()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_types_that_numpy_has_not(name: str) -> None:
    dtype, expected = getattr(torch, name), torch.from_numpy(VALUES).to(getattr(torch, name))
    array = VALUES.astype(getattr(ml_dtypes, name))
    for one in (array, array.view(f"V{array.itemsize}")):  # as it is made, and as it is read from a file
        found = given(one, dtype)
        assert found.dtype == dtype
        assert torch.equal(found.float(), expected.float())


def test_a_number_without_dimensions() -> None:
    assert torch.equal(given(np.array(3, ">i8"), torch.int64, ()), torch.tensor(3))


@pytest.mark.parametrize(
    ("array", "dtype", "words"),
    [
        (np.array([["a", "b", "c"]] * 2), torch.float32, r"'x' has the dtype '<U1'.*float32"),
        (VALUES.astype(object), torch.float32, r"'x' has the dtype '\|O'.*float32"),
        (VALUES.view("V4"), torch.float32, r"'x' has the dtype '\|V4'.*float32"),
        (VALUES.astype(np.float16).view("V2"), torch.float16, r"'x' has the dtype '\|V2'.*float16"),
        (VALUES.astype(ml_dtypes.bfloat16).view("V2"), torch.float32, r"'x' has the dtype '\|V2'.*float32"),
        (VALUES.astype(ml_dtypes.float8_e5m2), torch.float8_e4m3fn, r"'x' has the dtype 'float8_e5m2'.*float8_e4m3fn"),
        (VALUES.astype([("a", "f4")]), torch.float32, r"'x' has the dtype.*float32"),
        (VALUES.astype([("a", "f2")]), torch.bfloat16, r"'x' has the dtype.*bfloat16"),
        (VALUES.astype(np.longdouble), torch.float32, r"'x' has the dtype '<f16'.*float32"),
        (VALUES.astype(">f8"), torch.float32, r"'x' is torch.float64, the plan is for torch.float32"),
        (VALUES[:1], torch.float32, r"'x' has shape \[1, 3\], the plan is for \[2, 3\]"),
    ],
)
def test_arrays_that_are_no_such_tensor(array: Any, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(InputError, match=words):
        given(array, dtype)
