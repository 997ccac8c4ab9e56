"""`python -m bench [NAME ...]`: run benchmarks; tables on the terminal, JSON in bench/results/."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

from tensorstow.ir.paths import write_atomic

NAMES = (
    "execution",
    "pages",
    "capped",
    "streaming",
    "prediction",
    "overhead",
    "training",
    "training_plans",
    "training_large",
    "optimizer",
    "planning",
    "gaps",
    "conformance",
    "ablation",
    "packing",
    "cosma",
    "scale",
    "repeats",
    "experts",
    "reliability",
    "moe",
    "page",
)


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    for name in names or NAMES:
        began = time.time()
        result = import_module(f".{name}", __package__).main()
        result |= {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - began, 1)}
        write_atomic(folder / f"{name}.json", json.dumps(result, indent=1).encode() + b"\n")
        print(f"-> {folder / f'{name}.json'}")


if __name__ == "__main__":
    main(sys.argv[1:])
