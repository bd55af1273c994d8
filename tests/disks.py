"""Small disks (tmpfs), which take the right to mount, and a limit on the size of files, which takes none."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def mount(path: Path, options: str) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False, timeout=30
    )
    return done.returncode == 0


@contextmanager
def read_only_view(folder: Path, at: Path) -> Iterator[Path]:
    """The same folder at another place, as a user sees it who may not write there, were it root."""
    at.mkdir()
    subprocess.run(["mount", "--bind", str(folder), str(at)], check=True, timeout=30)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(at)], check=True, timeout=30)
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True, timeout=30)


def used_kib(path: Path) -> int:
    return shutil.disk_usage(path).used // 1024


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def files_left(count: int) -> Iterator[None]:
    """This process may open so many files more, and no other one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as free:
        for _ in range(count + 1):
            free.callback(os.close, last := os.open(os.devnull, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
