"""Tests of planner/entry.py."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.planner.entry import Directory, Maker, as_call, is_entry, make, parse_entry

GOOD = """
import torch
from torch import nn
from beside import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2)

    def forward(self, x, y=None):
        return self.layer(x)

def positional():
    return Net(), (torch.ones(1, WIDTH), None)

def named():
    return Net(), {"x": torch.ones(1, WIDTH)}

def alone():
    return Net(), torch.ones(1, WIDTH), nn.functional.mse_loss

class Zoo:
    @staticmethod
    def small():
        return Net(), [torch.ones(1, WIDTH)]

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a file of good callables; what it imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "beside.py").write_text("WIDTH = 3\n")
    (tmp_path / "nets.py").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:some/dir", Directory(Path("some/dir"))),
        ("hf:dir:with:colons", Directory(Path("dir:with:colons"))),
        ("nets.py:make", Maker("nets.py:make", "make", file=Path("nets.py"))),
        ("/a b/c:d/nets.py:Zoo.small", Maker("/a b/c:d/nets.py:Zoo.small", "Zoo.small", file=Path("/a b/c:d/nets.py"))),
        ("pkg.module:make", Maker("pkg.module:make", "make", package="pkg.module")),
    ],
)
def test_what_a_text_names(text: str, expected: Directory | Maker) -> None:
    assert is_entry(text)
    assert parse_entry(text) == expected


@pytest.mark.parametrize(
    "text", ["model.onnx", "a/b:c.onnx", "a/b.onnx:make", "nets.py:", ":make", "nets.py:a b", "1a:b"]
)
def test_what_names_nothing(text: str) -> None:
    assert not is_entry(text)
    with pytest.raises(InputError, match=r"write hf:DIR, file.py:callable or pkg.module:callable"):
        parse_entry(text)
    with pytest.raises(InputError, match="names no directory"):
        parse_entry("hf:")


def made(text: str) -> tuple[tuple[object, ...], dict[str, object], object]:
    maker = parse_entry(text)
    assert isinstance(maker, Maker)
    found = make(maker)
    assert isinstance(found.module, nn.Module)
    assert found.module(*found.args, **found.kwargs).shape == (1, 2)
    return found.args, found.kwargs, found.loss


@pytest.mark.usefixtures("folder")
def test_callables_are_found_and_called() -> None:
    args, kwargs, loss = made("nets.py:positional")
    assert (len(args), kwargs, loss) == (2, {}, None)
    args, kwargs, _ = made("nets.py:named")
    assert (args, list(kwargs)) == ((), ["x"])
    args, kwargs, loss = made("nets.py:alone")
    assert (len(args), loss) == (1, nn.functional.mse_loss)
    assert made("nets.py:Zoo.small")[1] == {}
    assert made("nets:positional")[1] == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def f(): return 3", r"'bad.py:f' returned int; it must return \(module, example_inputs\)"),
        ("def f(): return (1, 2, 3, 4, 5)", "returned a tuple of 5"),
        ("def f(): return 'net', ()", r"returned a str where the torch.nn.Module should be"),
        ("def f():\n    return torch.nn.ReLU(), 5", "example inputs are int; give a tensor, a tuple of arguments"),
        ("def f():\n    return torch.nn.ReLU(), {1: 2}", "have the key 1, which is no name"),
        ("def f(x): return x", r"raised TypeError: f\(\) missing 1 required"),
        (
            "def f():\n    g()\ndef g():\n    raise OSError('no disk')",
            r"raised OSError: no disk \(.*bad.py, line 5: raise",
        ),
        ("def f():\n    torch.ones(2) @ torch.ones(3)", r"raised RuntimeError: .*\(.*bad.py, line 3: torch.ones"),
        ("f = 3", "is int, which cannot be called"),
        ("def g(): pass", r"there is no 'f'; it has g"),
        ("import absent_package", r"loading 'bad.py' raised ModuleNotFoundError: .*line 2: import absent_package"),
        ("def f(:", r"loading 'bad.py' raised SyntaxError: .*bad.py, line 2"),
        ("import sys\nsys.exit(0)", r"loading 'bad.py' raised SystemExit: 0 \(.*bad.py, line 3: sys.exit"),
        ("def f():\n    raise SystemExit", r"'bad.py:f' raised SystemExit \(.*bad.py, line 3: raise"),
    ],
)
def test_what_goes_wrong_in_it_is_said(folder: Path, body: str, words: str) -> None:
    (folder / "bad.py").write_text(f"import torch\n{body}\n")
    with pytest.raises(InputError, match=words):
        made("bad.py:f")


@pytest.mark.usefixtures("folder")
def test_what_is_not_there_is_said() -> None:
    with pytest.raises(InputError, match=r"'absent.py:f': there is no file 'absent.py'"):
        made("absent.py:f")
    with pytest.raises(InputError, match=r"importing 'absent.thing' raised ModuleNotFoundError"):
        made("absent.thing:f")


def test_calls_of_every_form() -> None:
    one = torch.ones(1)
    assert as_call(one, "x") == ((one,), {})
    assert as_call([one, 2], "x") == ((one, 2), {})
    assert as_call({"a": one}, "x") == ((), {"a": one})
    with pytest.raises(InputError, match=r"^mine: example inputs are set"):
        as_call({1}, "mine")


DRAWS = """
import random
import numpy as np
import torch
from torch import nn

SCALE = random.random() * np.random.rand()

def make():
    return nn.Linear(3, 2), torch.randn(1, 3) * SCALE * random.random() * np.random.rand()
"""


def test_what_is_drawn_at_random_is_the_same_when_made_again(tmp_path: Path) -> None:
    path = tmp_path / "draws.py"
    path.write_text(DRAWS)
    maker = Maker("draws.py:make", "make", file=path)
    first = make(maker)
    torch.randn(5)  # whatever else the process draws
    second = make(maker)
    assert torch.equal(first.module.weight, second.module.weight)
    assert torch.equal(first.args[0], second.args[0])


def test_the_generators_of_whoever_asks_go_on_as_if_nothing_was_drawn(tmp_path: Path) -> None:
    path = tmp_path / "draws.py"
    path.write_text(DRAWS)
    drawn: list[tuple[float, float, float]] = []
    for maker in (None, Maker("draws.py:make", "make", file=path)):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        if maker is not None:
            make(maker)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("folder")
def test_a_package_that_ends_the_process_is_told() -> None:
    Path("ending.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(InputError, match=r"importing 'ending' raised SystemExit: 0"):
        made("ending:f")


def test_nothing_is_left_of_a_file_that_did_not_load(folder: Path) -> None:
    for number, body in enumerate(("raise SystemExit(0)", "1 / 0", "raise KeyboardInterrupt")):
        (folder / f"half{number}.py").write_text(f"begun = 1\n{body}\n")
        with pytest.raises((InputError, KeyboardInterrupt)):
            made(f"half{number}.py:f")
    assert not [name for name in sys.modules if "entry_half" in name]


def test_files_of_one_name_in_two_folders_are_two_modules(folder: Path) -> None:
    """What is looked up later by its class's module, as pickle does, is of the file that it came from."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "net.py").write_text(GOOD.replace("from beside import WIDTH", f"WIDTH = {len(name) + 4}"))
    parsed = [parse_entry(f"{name}/net.py:positional") for name in ("one", "two")]
    modules = [make(entry).module for entry in parsed if isinstance(entry, Maker)]
    assert len({type(m).__module__ for m in modules}) == 2
    for module in modules:
        assert getattr(sys.modules[type(module).__module__], "Net") is type(module)  # noqa: B009
