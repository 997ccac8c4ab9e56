"""Under one hard memory limit: our executor, and ONNX Runtime with the whole model. Who lives, and how fast."""

from __future__ import annotations

import json
import sys
from typing import Any

from .common import MEMCAP, MIB, capped, command, model_folder, network, resident_nbytes, table

NETWORKS = ("vgg19", "resnet50", "gpt")
SHARE = 0.5
SLACK = 1.05
"""The limit is 5% above the promised peak: what the promise must be good for."""

WHOLE_SESSION = """
import json, statistics, sys, time
import numpy as np, onnxruntime as ort
path, inputs = sys.argv[1], dict(np.load(sys.argv[2]))
options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
times = []
for _ in range(5):
    began = time.perf_counter()
    session.run(None, inputs)
    times.append(time.perf_counter() - began)
print(json.dumps({"median_s": statistics.median(times)}))
"""


def case(name: str) -> dict[str, Any]:
    """Both under the same limit."""
    import numpy as np

    from tensorstow.execute import random_inputs
    from tensorstow.ir.files import read_plan

    path = network(name)
    budget = int(resident_nbytes(path) * SHARE)
    plan_path, input_path = model_folder() / f"{name}.capped.plan.json", model_folder() / f"{name}.npz"
    planned = command("plan", str(path), "--tier", f"dram={budget}", "-o", str(plan_path))
    np.savez(input_path, allow_pickle=False, **random_inputs(read_plan(plan_path)))
    command("run", str(plan_path), "--repeat", "1")  # the weight store is made once, outside the limit
    limit = int(planned["promised_peak_nbytes"] * SLACK) // MIB + 1
    ours, printed = capped(
        limit, [sys.executable, "-m", "tensorstow", "run", str(plan_path), "--repeat", "5", "--json"]
    )
    arguments = [sys.executable, "-c", WHOLE_SESSION, str(path), str(input_path), "2"]
    whole, said = capped(limit, arguments)
    return {
        "network": name,
        "limit_mib": limit,
        "ours": ours | {"median_s": json.loads(printed)["median_s"] if printed else None},
        "whole_session": whole | {"median_s": json.loads(said)["median_s"] if said else None},
    }


def main() -> dict[str, Any]:
    """The table; empty where there is no tool to set a limit with."""
    if not MEMCAP.exists():
        print(f"capped: skipped, {MEMCAP.name} is not at hand (set TENSORSTOW_MEMCAP)")
        return {"rows": []}
    rows = [case(name) for name in NETWORKS]
    table(
        "under one memory limit: tensorstow, and ONNX Runtime with the whole model",
        ("network", "limit MiB", "ours", "peak MiB", "whole session", "peak MiB", "major faults"),
        [
            [
                r["network"],
                str(r["limit_mib"]),
                _time(r["ours"]),
                str(r["ours"]["peak_mib"]),
                _time(r["whole_session"]),
                str(r["whole_session"]["peak_mib"]),
                str(r["whole_session"]["pgmajfault"]),
            ]
            for r in rows
        ],
    )
    return {"rows": rows}


def _time(side: dict[str, Any]) -> str:
    return f"killed (rc {side['rc']})" if side["median_s"] is None else f"{1e3 * side['median_s']:.0f} ms"
