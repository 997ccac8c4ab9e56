"""Files made to hurt: each is refused in words, or read for what it is; nothing outside its folder is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorstow.ir.errors import InputError, TensorstowError
from tensorstow.planner.onnx import lower_onnx
from tests.conftest import Cli
from tests.fuzz.corpus import ARCHIVES, CORPUS, PLANS, SAFETENSORS
from tests.fuzz.corpus_models import MODELS, SECRET
from tests.fuzz.guard import harm_of, little_memory, opened_files
from tests.fuzz.readers import READERS

READ = {
    "inputs": {"an array above the folder", "an array of no bytes 2**60 times"},
    "trace": {"a bomb in an array that is not read"},
    # The weights' bytes are those of another shape, or nothing is wrong before ONNX Runtime looks at the operators.
    "onnx": {
        "a tensor filled with 2**60 elements",
        "a tensor filled with 2**34 elements",
        "a tensor filled with -1 elements",
        "a filled tensor of 2**40 elements that could be folded",
        "a range of 2**40 elements that could be folded",
        "a sparse tensor of 2**62 elements",
        "a sparse tensor whose indices are outside",
        "20 graphs in one another",
        "a version that is none",
        "an operator set of the future",
        "a node that reads itself",
        "a value made twice",
        "an output that nobody makes",
    },
}
"""What a reader takes: it may be odd, it does no harm."""

FILES = [(reader, name) for reader, files in CORPUS.items() for name in files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a file, with a secret beside the folder."""
    (tmp_path / SECRET).write_bytes(bytes(20_000))
    made = tmp_path / "model"
    made.mkdir()
    return made


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("reader", "name"), FILES, ids=[f"{r}-{n}" for r, n in FILES])
def test_a_hostile_file_does_no_harm(reader: str, name: str, folder: Path) -> None:
    path, refused = folder / f"file{READERS[reader].suffix}", list[TensorstowError]()
    CORPUS[reader][name](path)

    def read(path: Path) -> None:
        try:
            READERS[reader].read(path)
        except TensorstowError as error:
            refused.append(error)
            raise

    assert harm_of(read, path, folder) == ""
    assert bool(refused) == (name not in READ.get(reader, ()))
    for error in refused:
        assert isinstance(error, InputError)
        assert len(str(error)) > 20


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_not_planned(name: str, folder: Path, tmp_path: Path) -> None:
    """The whole way to a graph, ONNX Runtime's reading and folding with it."""
    path = folder / "file.onnx"
    MODELS[name](path)
    refused = list[str]()

    def read(path: Path) -> None:
        try:
            lower_onnx(path, cache=tmp_path / "cache")
        except TensorstowError as error:
            refused.append(str(error))
            raise

    assert harm_of(read, path, tmp_path) == ""
    assert not any("root:" in text or str(bytes(8)) in text for text in refused)
    if "folded" not in name:  # those are models, and it is ONNX Runtime's to say whether they can be
        assert refused


@pytest.mark.parametrize("name", PLANS)
def test_show_of_a_hostile_plan_is_one_error(name: str, folder: Path, cli: Cli) -> None:
    path = folder / "plan.json"
    PLANS[name](path)
    said = cli("show", path)
    assert said.status in (0, 2), said
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    assert "\x1b[2J" not in said.out + said.err


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_experts_of_a_hostile_trace_is_one_error(name: str, folder: Path, cli: Cli) -> None:
    path = folder / "trace.npz"
    ARCHIVES[name](path)
    said = cli("experts", path, "--experts", 8, "--cache", 4, "--policies", "lru")
    assert said.status == (0 if name in READ["trace"] else 2), said
    assert said.err.count("error:") == (said.status == 2)
    assert "Traceback" not in said.err


def test_the_guard_sees_harm(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out.txt"
    inside.mkdir()
    outside.write_text("secret")

    def refuses(path: Path) -> None:
        try:
            bytearray(4 << 30)
        except MemoryError as error:
            raise InputError("no memory for the file") from error

    def silent(path: Path) -> None:
        raise InputError("")

    assert "opened" in harm_of(lambda path: outside.read_text(), inside, inside)
    assert "FileNotFoundError" in harm_of(lambda path: (path / "absent").read_text(), inside, inside)
    assert "MemoryError" in harm_of(lambda path: bytearray(4 << 30), inside, inside)
    assert "took all memory" in harm_of(refuses, inside, inside)
    assert "without a word" in harm_of(silent, inside, inside)
    assert harm_of(lambda path: None, inside, inside) == ""
    with little_memory(), opened_files() as opened:
        outside.read_text()
    assert opened == [str(outside)]


def test_no_reader_is_without_its_corpus() -> None:
    assert CORPUS.keys() == READERS.keys()
    assert min(map(len, (PLANS, MODELS, ARCHIVES, SAFETENSORS))) >= 10
