"""What the pages need while they are built: figures by the planner, the command line's own help, names of machines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

FIGURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>(?:\.\./)*figures/[\w-]+)\.svg\)")
HELP = re.compile(r"^<!-- help: (?P<command>[\w ]*)-->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Every figure, for light and for dark pages."""
    from docs.figures import FIGURES, render

    for name in FIGURES:
        for ending, dark in (("", False), ("-dark", True)):
            files.append(File.generated(config, f"figures/{name}{ending}.svg", content=render(name, dark=dark)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Both forms of a figure in the place of its name, and what `--help` prints."""
    del page, config, files
    markdown = FIGURE.sub(_both, markdown)
    return HELP.sub(lambda found: f"```text\n{help_of(found['command'].split())}\n```", markdown)


def on_post_build(config: Any) -> None:
    """The index of the search as a script: pages opened from a folder may load that, and no other file."""
    folder = Path(config["site_dir"]) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def _both(found: re.Match[str]) -> str:
    text, path = found["text"], found["path"]
    return f"![{text}]({path}.svg#only-light)\n![{text}]({path}-dark.svg#only-dark)"


def help_of(command: list[str]) -> str:
    """What `tensorstow COMMAND --help` prints, 100 columns wide."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from tensorstow.cli import app

    assert get_command(app)
    done = CliRunner().invoke(app, [*command, "--help"], prog_name="tensorstow", terminal_width=100)
    assert done.exit_code == 0, done.output
    return done.output.strip()
