"""The code blocks of the documentation, as they stand on its pages.

A fence's language says what it is: `python` is executed, all blocks of a page in one namespace; `console`, or no
language, holds commands. Its title says more: a file's name has it written to the reader's folder instead; `takes a
minute` makes its test a slow one; a block that `needs a GPU` is left out where pages are tested, on a processor; one
that `needs lightning` is a slow one, left out where that is not installed.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]*)"')
SLOW, GPU, LIGHTNING = "takes a minute", "needs a GPU", "needs lightning"
REFUSED = re.compile(r"\s+# refused: exit status (\d)$")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of `page` at `line`."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def file(self) -> str | None:
        """The name under which a reader saves it, if that is what it is for."""
        return self.title if re.fullmatch(r"[\w-]+\.(py|toml|csv)", self.title) else None

    @property
    def commands(self) -> tuple[Command, ...]:
        """What is typed in a block of commands: lines after `$ `, or, where there are none, all lines."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        typed = [line[2:] for line in lines if line.startswith("$ ")] or lines
        return tuple(_command(line) for line in typed)


@dataclass(frozen=True, slots=True)
class Command:
    """A line that a reader types, and the exit status that the page tells him to expect."""

    words: tuple[str, ...]
    status: int


def _command(line: str) -> Command:
    refused = REFUSED.search(line)
    words = shlex.split(REFUSED.sub("", line), comments=True)
    return Command(tuple(words), int(refused[1]) if refused else 0)


def pages() -> dict[str, Path]:
    """README and all pages, by the name that tests are called."""
    found = {"README": ROOT / "README.md"}
    found |= {str(p.relative_to(ROOT / "docs").with_suffix("")): p for p in sorted((ROOT / "docs").rglob("*.md"))}
    return found


def snippets(page: str) -> tuple[Snippet, ...]:
    """The blocks of a page from its top."""
    text = pages()[page].read_text(encoding="utf-8")
    found: list[Snippet] = []
    for block in FENCE.finditer(text):
        indent, info = len(block["indent"]), block["info"].strip()
        title = TITLE.search(info)
        lines = "\n".join(line[indent:] for line in block["text"].splitlines()) + "\n"
        number = text.count("\n", 0, block.start()) + 1
        found.append(Snippet(page, number, info.split(" ")[0], title[1] if title else "", lines))
    return tuple(found)
