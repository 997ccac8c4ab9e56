"""The entry point of the command line: errors become one clear line and an exit status."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exit status: 0 done, 2 bad input, 3 infeasible, 4 time limit, 1 our own fault."""
    from .cli import run_cli

    sys.exit(run_cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
