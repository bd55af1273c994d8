"""A limit of processor time is heeded, of either version of control groups."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coldframe.cores import limit
from tests.conftest import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = Path("/sys/fs/cgroup")


def tree(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Control groups as files, and what a process is told of its own."""
    for name, text in files.items():
        file = folder / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (folder / "own").write_text(own + "\n")
    return folder / "groups", folder / "own"


SECOND, FIRST = "0::/pod/box", "5:memory:/pod/box\n4:cpu,cpuacct:/pod/box\n1:name=systemd:/pod/box"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (SECOND, {"pod/box/cpu.max": "50000 100000"}, 1),
        (SECOND, {"pod/box/cpu.max": "150000 100000"}, 2),
        (SECOND, {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "400000 100000"}, 4),
        (SECOND, {"pod/box/cpu.max": "800000 100000", "pod/cpu.max": "20000 10000"}, 2),
        (SECOND, {"pod/box/cpu.max": "max 100000"}, None),
        (SECOND, {}, None),
        ("0::/", {"cpu.max": "300000 100000"}, 3),
        (FIRST, {"cpu/pod/box/cpu.cfs_quota_us": "250000", "cpu/pod/box/cpu.cfs_period_us": "100000"}, 3),
        (FIRST, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        (FIRST, {"cpu/pod/box/cpu.cfs_quota_us": "-1", "cpu/pod/box/cpu.cfs_period_us": "100000"}, None),
        (FIRST, {"memory/pod/box/cpu.max": "100000 100000"}, None),
    ],
)
def test_the_limit_is_the_least_of_a_group_and_of_those_above_it(
    tmp_path: Path, own: str, files: dict[str, str], cores: int | None
) -> None:
    assert limit(*tree(tmp_path, own, files)) == cores


def test_there_is_no_limit_where_there_are_no_groups(tmp_path: Path) -> None:
    assert limit(tmp_path / "groups", tmp_path / "own") is None


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group of its own, with half a core, where this user may make one."""
    first = (GROUPS / "cpu").is_dir()
    group = (GROUPS / "cpu" if first else GROUPS) / f"coldframe-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("cpu.cfs_quota_us" if first else "cpu.max")).write_text("50000" if first else "50000 100000")
    except OSError:
        pytest.skip("this user may make no control group")
    yield group
    group.rmdir()


BOTH = pytest.mark.parametrize(
    "arguments", [("server", "--listen", "127.0.0.1:0"), ("indexer", "build", "--corpus", SAMPLE)]
)


def run_in(group: Path, *arguments: object, **environment: str) -> str:
    """What Python says that runs in a control group with these arguments."""
    join = f'echo $$ > {shlex.quote(str(group))}/cgroup.procs; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", join, "sh", sys.executable, *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("given", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_torch_has_as_many_threads_as_there_is_time_for(half_a_core: Path, given: dict[str, str], threads: int) -> None:
    asked = "from coldframe import cores; cores.heed(); import torch; print(torch.get_num_threads())"
    assert run_in(half_a_core, "-c", asked, **given) == f"{threads}\n"


@BOTH
def test_both_programs_have_threads_that_are_done_rest_soon(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    """Beside two busy processes k-means of 2,225 articles took 45 s where they went on looking for more, and 23."""
    (tmp_path / "torch.py").write_text("import os; os.write(1, os.environ['GOMP_SPINCOUNT'].encode()); os._exit(0)")
    folders = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments), "--store", tmp_path / "store"],
        env={name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "20000", done.stderr


@BOTH
def test_both_programs_heed_the_limit_before_torch_is_imported(
    half_a_core: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    (tmp_path / "torch.py").write_text("import os; os.write(1, os.environ['OMP_NUM_THREADS'].encode()); os._exit(0)")
    folders = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert run_in(half_a_core, "-m", *arguments, "--store", tmp_path / "store", PYTHONPATH=folders) == "1"
