"""Programs that write to a terminal of their own."""

from __future__ import annotations

import os
import subprocess


def on_a_terminal(command: list[str], **environment: str) -> bytes:
    """What `command` writes to a terminal of 80 columns, stdout and stderr together.

    Only `environment` declines colours or forces them. The command has to end with status 0.
    """
    import pty

    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")}
    kept |= {"TERM": "xterm-256color", "COLUMNS": "80"} | environment
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=kept) as process:
        os.close(theirs)
        content = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # Linux: nobody holds the other end any more
                break
            if not piece:
                break
            content += piece
    os.close(ours)
    assert process.returncode == 0, content
    return content
