"""What a plan promises of the process that runs it is held against what that process may have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tensorstow.executors import require_room
from tensorstow.ir.errors import ExecutionError
from tensorstow.ir.files import PlanFile
from tests.faults.subject import shared_subject

ENOUGH = 1 << 50


@pytest.fixture(scope="module")
def file() -> PlanFile:
    """A plan whose process takes much more than this one."""
    return replace(shared_subject().file, fixed_nbytes=1 << 40)


def system(root: Path, *, available: int, limit: int | str, used: int = 0) -> Path:
    """A made-up /proc and /sys with one cgroup of version 2."""
    contents = {
        "proc/meminfo": f"MemAvailable: {available >> 10} kB\n",
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/memory.max": str(limit),
        "sys/fs/cgroup/a/memory.current": str(used),
    }
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_cgroup_just_below_the_promise_is_refused_with_both_numbers(file: PlanFile, tmp_path: Path) -> None:
    promised = file.promised_peak_nbytes
    with pytest.raises(ExecutionError, match=rf"up to {promised} .* allows {promised - 1}.*--process-limit") as error:
        require_room(file, system(tmp_path, available=ENOUGH, limit=promised - 1))
    assert error.value.exit_status == 2
    require_room(file, system(tmp_path, available=ENOUGH, limit=promised))


def test_what_is_available_beside_what_the_process_has_must_suffice(file: PlanFile, tmp_path: Path) -> None:
    promised = file.promised_peak_nbytes
    with pytest.raises(ExecutionError, match=rf"up to {promised} .* are available"):
        require_room(file, system(tmp_path, available=promised >> 1, limit="max"))
    with pytest.raises(ExecutionError, match=rf"up to {promised} .* are available"):
        require_room(file, system(tmp_path, available=ENOUGH, limit=2 * promised, used=3 * promised // 2))
    require_room(file, system(tmp_path, available=promised, limit="max"))


def test_nothing_is_promised_where_the_fixed_part_is_not_known(file: PlanFile, tmp_path: Path) -> None:
    require_room(replace(file, fixed_nbytes=0), system(tmp_path, available=0, limit=1))
