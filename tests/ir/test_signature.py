from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstow.ir.errors import InputError
from tensorstow.ir.signature import Argument, TensorForm, TorchName, read_signature, write_signature

SIZES = st.lists(st.integers(0, 9), max_size=4)
FORMS = SIZES.flatmap(
    lambda shape: st.builds(
        TensorForm,
        st.sampled_from(["float32", "int64"]),
        st.just(tuple(shape)),
        st.lists(st.integers(0, 99), min_size=len(shape), max_size=len(shape)).map(tuple),
        st.booleans(),
    )
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
ARGUMENTS: st.SearchStrategy[Argument] = st.recursive(
    st.one_of(PLAIN, FORMS, st.builds(TorchName, st.text())), lambda inner: st.lists(inner, max_size=3).map(tuple)
)


@given(st.text(), st.lists(ARGUMENTS, max_size=4), st.dictionaries(st.text(), ARGUMENTS, max_size=3))
def test_what_is_written_is_read(op: str, args: list[Argument], kwargs: dict[str, Argument]) -> None:
    signature = write_signature(op, args, kwargs)
    call = read_signature(signature)
    assert (call.op, call.args, dict(call.kwargs)) == (op, tuple(args), kwargs)
    assert write_signature(call.op, call.args, dict(reversed(call.kwargs))) == signature
    json.dumps(signature)


def test_numbers_of_other_types_are_other_calls() -> None:
    assert len({write_signature("aten.add.Scalar", [n], {}) for n in (1, 1.0, True, "1")}) == 4


def test_tensors_are_found_wherever_they_are() -> None:
    one, two, three = (TensorForm("float32", (n,), (1,)) for n in (1, 2, 3))
    call = read_signature(write_signature("aten.cat.default", [(one, (two,)), 0], {"out": three}))
    assert call.tensors == (one, two, three)


@given(FORMS)
def test_span_is_that_of_the_elements(form: TensorForm) -> None:
    places = {0} if 0 not in form.shape else set[int]()
    for n, stride in zip(form.shape, form.strides, strict=True):
        places = {p + k * stride for p in places for k in range(n)}
    assert form.span == (max(places) + 1 if places else 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '["op",[]]',
        '["op",[{"what":1}],[]]',
        '["op",[{"tensor":["float32",[2],[1,1],false]}],[]]',
        '["op",[{"tensor":["float32",[-2],[1],false]}],[]]',
        '["op",[{"tensor":1}],[]]',
        "[" * 100_000,
    ],
)
def test_text_that_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not an operator's signature"):
        read_signature(text)
