"""What plain ONNX Runtime passes of the onnx package's node tests, our path passes too: a sample, and slowly all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.conformance import Facts, collect, differing, run_cases
from bench.conformance_case import Case

EVERY = 24

# What a step of twenty-four may jump over: strings, sequences, optionals, bodies, tensors without bytes, narrow types,
# shapes that depend on data, operators with outputs inside and outside the plan, a spill within an instant.
ODD = (
    "test_string_concat",
    "test_string_split_basic",
    "test_string_split_empty_tensor",
    "test_ai_onnx_ml_label_encoder_string_int",
    "test_identity_sequence",
    "test_identity_opt",
    "test_sequence_insert_at_back",
    "test_sequence_map_add_1_sequence_1_tensor",
    "test_split_to_sequence_2",
    "test_if",
    "test_if_seq",
    "test_if_opt",
    "test_loop11",
    "test_loop13_seq",
    "test_loop16_seq_none",
    "test_scan9_sum",
    "test_affine_grid_3d_expanded",
    "test_constantofshape_int_shape_zero",
    "test_reduce_sum_empty_set",
    "test_concat_1d_axis_0",
    "test_castlike_FLOAT_to_BFLOAT16",
    "test_castlike_BFLOAT16_to_FLOAT_expanded",
    "test_castlike_FLOAT_to_FLOAT8E4M3FN",
    "test_castlike_FLOAT_to_INT4",
    "test_castlike_UINT4_to_FLOAT",
    "test_castlike_FLOAT_to_INT2_expanded",
    "test_training_dropout_zero_ratio_mask",
    "test_range_bfloat16_type_positive_delta",
    "test_nonzero_example",
    "test_nonmaxsuppression_two_classes",
    "test_prelu_broadcast_expanded",
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return collect()


def require_all(facts: Sequence[Facts], passing: int) -> None:
    """No case that plain ONNX Runtime passes differs, and at least `passing` are such cases."""
    assert sum(not f["plain"] for f in facts) >= passing
    assert [(f["name"], f.get("free"), f.get("tight")) for f in differing(facts)] == []


def test_a_sample_of_the_node_tests(cases: list[Case], tmp_path: Path) -> None:
    chosen = [c for i, c in enumerate(cases) if i % EVERY == 0 or c.name in ODD]
    require_all(run_cases(chosen, tmp_path), 80)


def test_a_worker_that_dies_costs_one_case(cases: list[Case], tmp_path: Path) -> None:
    broken = Case("broken", b"", (1, 2, 3), (), 0.0, 0.0)  # its model has no inputs for these
    one = next(c for c in cases if c.name == "test_abs")
    facts = run_cases([broken, one], tmp_path, workers=1)
    assert "died" in facts[0]["plain"]
    assert (facts[1]["plain"], facts[1]["free"], facts[1]["tight"]) == ("", "", "")


@pytest.mark.slow
def test_all_node_tests(cases: list[Case], tmp_path: Path) -> None:
    require_all(run_cases(cases, tmp_path), 1500)
