"""Every block of code of README and the documentation does what its page says: it runs, in the order of the page."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.conftest import Cli
from tests.models import light_models, write_mlp
from tests.networks import randomised

from .snippets import GPU, LIGHTNING, ROOT, SLOW, Snippet, pages, snippets

KNOWN = {"python", "console", "", "text", "toml"}
NO_CODE = {"text", "toml"}
ELSEWHERE = ("pip", "make")
"""What sets a box up; continuous integration does that before it comes here."""
README_DEMO = "vgg19.onnx"


def parts(*, slow: bool) -> list[Any]:
    """Pages with code to execute; a slow one runs whole, all the rest without the blocks that take minutes."""
    found: list[Any] = []
    for page in pages():
        blocks = [s for s in snippets(page) if s.language not in NO_CODE]
        if blocks and (not slow or any(is_slow(s) for s in blocks)):
            found.append(pytest.param(page, id=page, marks=pytest.mark.slow if slow else ()))
    return found


def is_slow(snippet: Snippet) -> bool:
    return snippet.title in (SLOW, LIGHTNING) or (snippet.page == "training" and snippet.language in ("python", ""))


def test_every_fence_says_what_it_is() -> None:
    for page in pages():
        for s in snippets(page):
            assert s.language in KNOWN, f"{page}, line {s.line}: '{s.language}' is none of {KNOWN}"
            assert not s.title or s.file or s.title in (SLOW, GPU, LIGHTNING), (
                f"{page}, line {s.line}: title '{s.title}'"
            )


@pytest.mark.parametrize("page", parts(slow=False))
def test_a_page_runs(page: str, desk: Desk, no_measuring: int) -> None:
    assert no_measuring
    desk.read(page, slow=False)


@pytest.mark.parametrize("page", parts(slow=True))
def test_a_page_runs_whole(page: str, desk: Desk) -> None:
    desk.read(page, slow=True)


class Desk:
    """A reader's folder, with the models that pages speak of, and what he has typed into Python so far."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder, self.cli = folder, cli
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def read(self, page: str, *, slow: bool) -> None:
        """Do what the page says, from its top."""
        done = 0
        for s in snippets(page):
            if s.title == GPU or (is_slow(s) and not slow):
                continue
            if s.title == LIGHTNING and importlib.util.find_spec("lightning") is None:
                continue
            where = f"{page}, line {s.line}"
            if s.file is not None:
                (self.folder / s.file).write_text(s.text, encoding="utf-8")
                sys.modules.pop(Path(s.file).stem, None)
                done += 1
            elif s.language == "python":
                self.prepare(s.text)
                exec(compile(s.text, where, "exec"), self.names)  # a page's code is ours
                done += 1
            elif s.language not in NO_CODE:
                for command in s.commands:
                    self.type(command.words, command.status, where)
                    done += 1
        assert done or slow or all(is_slow(s) or s.language in NO_CODE for s in snippets(page)), "nothing was run"

    def type(self, words: tuple[str, ...], status: int, where: str) -> None:
        """A command line, in this process."""
        if words[0] in ELSEWHERE:
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: {words}"
            return
        if words[0] == "python":
            assert words[1] == "-m", f"{where}: {words}"
            assert importlib.util.find_spec(words[2]) is not None, f"{where}: {words}"
            return
        assert words[0] == "tensorstow", f"{where}: {words}"
        self.prepare(" ".join(words))
        said = self.cli(*words[1:])
        assert said.status == status, f"{where}: {' '.join(words)}\n{said.out}\n{said.err}"

    def prepare(self, text: str) -> None:
        """The models, traces and files that a reader is taken to have, made small, when they are first spoken of."""
        for name in re.findall(r"[\w-]+\.(?:onnx|npz|csv|py)|\bDIR\b", text):
            path = self.folder / name
            if not path.exists() and name in OWNED:
                OWNED[name](path)
        self.names.setdefault("array", np.zeros((2, 256), np.float32))


def _vgg(path: Path) -> None:
    randomised(light_models()["vgg19"], path)


def _mlp(path: Path) -> None:
    """With an input that is called 'input'."""
    model = onnx.load(str(write_mlp(path, width=256, layers=6, rows=2)), load_external_data=False)
    model.graph.input[0].name = model.graph.node[0].input[0] = "input"
    onnx.save(model, str(path))


def _directory(path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)


def _trace(path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(32, 4, replace=False) for _ in range(300 * 3)]).reshape(300, 3, 4)
    np.savez(path, experts=ids.astype(np.uint8), offsets=np.arange(0, 301, 20, dtype=np.int64))


def _buffers(path: Path) -> None:
    path.write_text("id,lower,upper,size\na,0,4,30\nb,2,6,20\n")


NETS = """
import torch
from torch import nn


def make():
    return nn.Sequential(*[nn.Linear(128, 128) for _ in range(4)]).eval(), (torch.randn(2, 128),)
"""
TRAIN = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
    return model, (torch.randn(16, 64),), lambda out: out.pow(2).mean()
"""


def _nets(path: Path) -> None:
    path.write_text(NETS)


def _train(path: Path) -> None:
    path.write_text(TRAIN)


OWNED: dict[str, Any] = {
    "model.onnx": _mlp,
    README_DEMO: _vgg,
    "DIR": _directory,
    "TRACE.npz": _trace,
    "buffers.csv": _buffers,
    "nets.py": _nets,
    "train.py": _train,
}


@pytest.fixture
def desk(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A new folder to work in; what pages register or import is forgotten afterwards."""
    from tensorstow.planner import strategies

    strategies.strategy_names()  # registers ours, which stay
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(strategies, "_REGISTRY", dict(strategies._REGISTRY))  # pyright: ignore[reportPrivateUsage]
    for name in ("nets", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Desk(tmp_path, cli)
