"""Two small models that many tests run."""

from __future__ import annotations

import pytest

from tests.end_to_end.subject import (
    Subject,
)
from tests.models import write_cnn, write_mlp


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(write_cnn(tmp_path_factory.mktemp("cnn") / "cnn.onnx"))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(write_mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx", width=512, layers=6))
