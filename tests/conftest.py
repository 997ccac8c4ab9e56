"""A cache and a host profile of their own for all tests: nothing is calibrated, nothing of the user's is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit

# Compiled code is kept between test runs: the cache of a session of tests is empty at every start.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba"))


def host_machine() -> Machine:
    """This box as `--machine host` finds it in the tests: round figures, its own fingerprint."""
    from tensorstow.runtime.calibrate import host_fingerprint

    return Machine(
        name="host",
        tiers=(
            Tier("dram", TierKind.DRAM, 8 << 30, source="made up for the tests"),
            Tier("ssd", TierKind.SSD, 64 << 30, alignment=4096, source="made up for the tests"),
        ),
        links=(
            Link("ssd", "dram", 1.2e9, 5e-5, chunk_nbytes=1 << 20),
            Link("dram", "ssd", 1.0e9, 5e-5, chunk_nbytes=1 << 20),
        ),
        units=(Unit("cpu", "dram", (("float32", 1e11), ("float64", 5e10)), 6e9, 2e-5),),
        fingerprint=host_fingerprint(),
        measured="not measured: round figures for the tests",
    )


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """The folder that TENSORSTOW_CACHE names in all tests; child processes get it too."""
    from tensorstow.ir.profiles import write_machine

    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("TENSORSTOW_CACHE")
    os.environ["TENSORSTOW_CACHE"] = str(folder)
    write_machine(host_machine(), folder / "host.toml")
    yield folder
    if before is None:
        del os.environ["TENSORSTOW_CACHE"]
    else:
        os.environ["TENSORSTOW_CACHE"] = before


@dataclass(frozen=True)
class Said:
    """What a command ended with and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object of stdout, which holds nothing else."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Cli = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process: `cli("plan", path, "--json")`."""
    from tensorstow.cli import run_cli

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = run_cli([str(a) for a in arguments])
        written = capsys.readouterr()
        return Said(status, written.out, written.err)

    return run


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> int:
    """The process's fixed part as a given number: measuring it takes a process of its own, two seconds."""
    from tensorstow import workflow

    fixed = 100 << 20
    monkeypatch.setattr(workflow, "measure_fixed", lambda file: fixed)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    return fixed


@pytest.fixture
def one_thread() -> Generator[None]:
    """PyTorch computes on one thread: small products on several mostly wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
