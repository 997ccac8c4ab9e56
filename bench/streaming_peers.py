"""Peers that run a Hugging Face directory inside little memory, each in a process of its own:
`python -m bench.streaming_peers PEER DIR BATCH LENGTH PASSES MIB` prints one JSON object.

`accelerate`: from_pretrained with a device map of `MIB` of memory and the rest on the disk, read from the safetensors.
`accelerate-dat`: the same with accelerate's own format of one memory-mapped file a weight. `mmap`: the parameters are
views of the memory-mapped safetensors, and the kernel's page cache decides.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tensorstow.ir.paths import cache_dir


def accelerated(folder: Path, mib: int, scratch: Path, *, own_format: bool) -> torch.nn.Module:
    """The model with what fits `mib` in memory and the rest on the disk."""
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights, load_checkpoint_in_model
    from transformers import AutoConfig, AutoModelForCausalLM

    limits: dict[Any, Any] = {"cpu": f"{mib}MiB"}
    if not own_format:
        return AutoModelForCausalLM.from_pretrained(
            folder, device_map="auto", max_memory=limits, offload_folder=scratch, dtype="auto"
        )
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    places = infer_auto_device_map(model, limits, no_split_module_classes=model._no_split_modules)
    load_checkpoint_in_model(model, str(folder), places, offload_folder=str(scratch))
    return dispatch_model(model, places, offload_dir=str(scratch), main_device=torch.device("cpu"))


def mapped(folder: Path) -> torch.nn.Module:
    """The model over the page cache."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tensorstow.planner.pytorch.on_meta import parameters_on_meta

    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = np.memmap(path, np.uint8, "r")
        header = int(content[:8].view("<u8")[0])
        for name, entry in json.loads(bytes(content[8 : 8 + header])).items():
            if name != "__metadata__":
                lo, hi = (8 + header + at for at in entry["data_offsets"])
                tensors[name] = torch.from_numpy(content[lo:hi].view(np.float32).reshape(entry["shape"]))
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def main() -> None:
    """One peer: seconds of each pass, bytes read from the disk."""
    peer, folder, batch, length, passes, mib = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:7])
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        if peer == "mmap":
            model = mapped(folder)
        else:
            model = accelerated(folder, mib, Path(scratch), own_format=peer == "accelerate-dat")
        tokens = torch.zeros((batch, length), dtype=torch.int64)
        times: list[float] = []
        with torch.no_grad():
            model(tokens, use_cache=False)
            begun = read_nbytes()
            for _ in range(passes):
                began = time.perf_counter()
                model(tokens, use_cache=False)
                times.append(time.perf_counter() - began)
        facts = {"peer": peer, "measured_s": times, "median_s": statistics.median(times)}
        print(json.dumps(facts | {"read_nbytes": (read_nbytes() - begun) / passes}))


def read_nbytes() -> int:
    """Bytes that this process has had read from the disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


if __name__ == "__main__":
    main()
