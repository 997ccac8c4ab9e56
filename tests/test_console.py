"""How the command line speaks: plain where it must be, quiet in a pipe, honest about what is left, clear on causes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tensorstow import console
from tests.conftest import Cli
from tests.terminal import on_a_terminal

ESCAPE = "\x1b"
ON_A_TERMINAL = """
from tensorstow import console
console.progress("measuring", 0.0)
console.progress("measuring", 0.5)
console.done()
console.error("no", 2, as_json=False)
console.out.print("[bold green]yes[/]")
"""


def shown(code: str, **environment: str) -> str:
    """What a program writes to a terminal of its own, stdout and stderr together."""
    return on_a_terminal([sys.executable, "-c", code], **environment).decode()


def test_a_terminal_has_colours_unless_they_are_declined() -> None:
    coloured = shown(ON_A_TERMINAL)
    assert f"{ESCAPE}[1;32m" in coloured
    for environment in ({"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        plain = shown(ON_A_TERMINAL, **environment)
        assert ESCAPE not in plain, "not even bold, nor for the progress line"
        assert "\rmeasuring  50%" in plain
        assert "error: no" in plain
        assert "yes" in plain
    assert f"{ESCAPE}[1;32m" in shown(ON_A_TERMINAL, NO_COLOR=""), "set and empty is not set"


def watched(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=text, force_terminal=terminal, color_system=None, width=40))
    return text


def test_progress_replaces_itself_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = watched(monkeypatch, terminal=True)
    console.progress("a long one " * 9, 0.25)
    console.progress("short", 0.5)
    console.done()
    lines = text.getvalue().split("\r")[1:]
    assert [len(line) for line in lines] == [39, 39, 39, 0], "each covers the one before, and none wraps"
    assert lines[1].rstrip() == "short  50%"
    assert not lines[2].strip()


def test_nothing_is_told_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    text = watched(monkeypatch, terminal=False)
    console.progress("measuring", 0.5)
    console.done()
    assert text.getvalue() == ""


def test_what_is_left_is_told_from_two_seconds_on() -> None:
    assert console.remaining(0.5, 1.0) == "  50%"
    assert console.remaining(0.25, 3.0) == "  25%, 9 s left"
    assert console.remaining(0.0, 5.0) == ", 5 s", "no share, no guess"
    assert console.remaining(1.0, 9.0) == " 100%"


def test_a_pipe_gets_the_answer_and_no_more(cli: Cli, tmp_path: Path) -> None:
    table = tmp_path / "b.csv"
    table.write_text("id,lower,upper,size\na,0,2,64\nb,1,3,64\n")
    said = cli("pack", table, "--json")
    assert said.status == 0
    assert said.json["peak"] == 128
    assert said.err == ""
    assert ESCAPE not in cli("pack", table).out


def test_verbose_tells_what_an_error_was_raised_from(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "plan.json"
    broken.write_text("{")
    plain, verbose = cli("show", broken), cli("show", broken, "--verbose")
    assert plain.status == verbose.status == 2
    assert len(plain.err.strip().splitlines()) == 1
    first, *chain = verbose.err.strip().splitlines()
    assert first == plain.err.strip()
    assert chain[0].startswith("  raised as InputError: ")
    assert any(line.startswith("  caused by JSONDecodeError: ") for line in chain[1:])
    assert all(", line " in line for line in chain), "each with the line that raised it"
    assert cli("--verbose", "show", broken).err == verbose.err, "it may stand anywhere"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tensorstow ma", ["machine"]),
        ("tensorstow machine ", ["calibrate", "list", "show"]),
        ("tensorstow plan model.onnx --proc", ["--process-limit"]),
        ("tensorstow plan model.onnx --machine rtx4", ["rtx4090"]),
        ("tensorstow compare model.onnx --strat", ["--strategies"]),
    ],
)
def test_shells_complete_commands_options_and_machines(typed: str, offered: list[str]) -> None:
    words = {
        "_TENSORSTOW_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    command = [sys.executable, "-m", "tensorstow"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=False, timeout=60)
    assert sorted(done.stdout.split()) == offered
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    command = [sys.executable, "-m", "tensorstow"]
    environment = os.environ | {"_TENSORSTOW_COMPLETE": f"source_{shell}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert f"_TENSORSTOW_COMPLETE=complete_{shell}" in done.stdout
