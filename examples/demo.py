"""The main job on a real network: VGG-19, 549 MiB of weights, in 250 MiB of memory.

What is typed here is what you would type. The weights are random (the network that the onnx package ships holds one
value everywhere), written once into the cache.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tensorstow.ir.paths import cache_dir  # noqa: E402
from tests.models import light_models  # noqa: E402
from tests.networks import randomised  # noqa: E402

BUDGET = "dram=250MiB"


def main() -> None:
    """Make the network, plan it, compare strategies, run the plan and verify it."""
    folder = cache_dir() / "demo"
    folder.mkdir(exist_ok=True)
    model = folder / "vgg19.onnx"
    if not model.exists():
        print("writing VGG-19 with random weights ...", flush=True)
        randomised(light_models()["vgg19"], model)
    with tempfile.TemporaryDirectory() as temporary:
        plan = Path(temporary) / "plan.json"
        tensorstow("plan", str(model), "--tier", BUDGET, "--profile", "-o", str(plan))
        tensorstow("show", str(plan))
        tensorstow("compare", str(model), "--tier", BUDGET, "--strategies", "stow,flexgen,belady-prefetch,lru,resident")
        tensorstow("run", str(plan), "--verify")


def tensorstow(*arguments: str) -> None:
    """Run the command line as a user does, and stop where it fails."""
    print(f"\n$ tensorstow {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "tensorstow", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
