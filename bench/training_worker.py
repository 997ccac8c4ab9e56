"""One way of training, some steps of it, in a process of its own: seconds and the kernel's peak, as one JSON object.

`python -m bench.training_worker WAY BATCH STEPS [PLAN]`; ways are those of `WAYS`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorstow.runtime.memory import peak_rss_nbytes, reset_peak

from .training_models import gpt

Step = Callable[..., Tensor]


def eager(module: nn.Module, plan: Path | None) -> Step:
    """PyTorch as it is; also with its own checkpoints, which are in the module."""
    del plan
    return module


def memory_budget(share: float) -> Callable[[nn.Module, Path | None], Step]:
    """PyTorch's minimum-cut partitioner with this `activation_memory_budget`."""

    def made(module: nn.Module, plan: Path | None) -> Step:
        del plan
        import torch._functorch.config as config

        config.activation_memory_budget = share
        return torch.compile(module, backend="aot_eager_decomp_partition", fullgraph=True, dynamic=False)

    return made


def saved_on_disk(module: nn.Module, plan: Path | None) -> Step:
    """PyTorch's saved-tensor hooks, each saved activation written to a file and read back: no plan, no overlap."""
    del plan
    import tempfile

    import numpy as np

    folder = tempfile.TemporaryDirectory(dir=Path.home() / ".cache")
    count = iter(range(1 << 60))

    def pack(value: Tensor) -> Any:
        if isinstance(value, nn.Parameter) or value.untyped_storage().nbytes() < 1 << 20 or value.is_leaf:
            return value
        path = Path(folder.name) / str(next(count))
        np.save(path, value.detach().contiguous().numpy())
        return path

    def unpack(held: Any) -> Tensor:
        if isinstance(held, Tensor):
            return held
        path = held.with_suffix(".npy")
        value = torch.from_numpy(np.load(path))
        path.unlink()
        return value

    def step(*batch: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss: Tensor = module(*batch)
        return loss

    step.folder = folder  # type: ignore[attr-defined]
    return step


def planned(module: nn.Module, plan: Path | None) -> Step:
    """Ours."""
    import tensorstow as ts
    from tensorstow.ir.files import read_plan

    assert plan is not None
    return ts.apply(read_plan(plan), module)


WAYS: dict[str, Callable[[nn.Module, Path | None], Step]] = {
    "eager": eager,
    "checkpoint": eager,
    "hooks": saved_on_disk,
    "tensorstow": planned,
    **{f"budget {share}": memory_budget(share) for share in (0.75, 0.5, 0.25, 0.1, 0.0)},
}


def main() -> None:
    """Steps with gradients set to None between; the digest tells whether two ways compute the same."""
    way, batch_size, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    plan = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    module, batch = gpt(batch_size, checkpointed=way == "checkpoint")
    base = peak_rss_nbytes()
    step = WAYS[way](module, plan)
    reset_peak()
    times: list[float] = []
    loss = torch.zeros(())
    for _ in range(steps + 1):
        for p in module.parameters():
            p.grad = None
        began = time.perf_counter()
        loss = step(*batch)
        loss.backward()
        times.append(time.perf_counter() - began)
    digest = hashlib.sha256(loss.detach().numpy().tobytes())
    for p in module.parameters():
        assert p.grad is not None
        digest.update(p.grad.numpy().tobytes())
    facts: dict[str, Any] = {
        "first_s": times[0],
        "steps_s": times[1:],
        "peak_nbytes": peak_rss_nbytes(),
        "before_nbytes": base,
        "digest": digest.hexdigest()[:16],
    }
    if way == "tensorstow":
        stats: Any = step.stats  # type: ignore[attr-defined]
        facts |= {"read_nbytes": stats.read_nbytes, "written_nbytes": stats.written_nbytes}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
