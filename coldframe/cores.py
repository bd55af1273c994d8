"""How many cores a process has the time of: a container or a unit may be given less than the cores that it runs on.

A team of threads for which there is no time is stopped in the midst of its work, all of it, until its next share
comes, a tenth of a second later. And what is told to teams before they are there.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A tenth of a millisecond, which outlasts the time between two layers.
_SPINS = "20000"
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def heed() -> None:
    """Has torch and FAISS start no more threads than there is time for, unless the environment says how many.

    To be called before they are imported. Without a limit the environment stays as it is.
    """
    if limit() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(affordable(len(os.sched_getaffinity(0)))))


def rest_soon() -> None:
    """Has a thread of a team that is done look for more for a moment only, unless the environment says how long.

    By default it does for some milliseconds, and keeps the core from whoever is to answer, or from the one of its own
    team that it waits for. To be called before torch and FAISS are imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def affordable(cores: int) -> int:
    """Of so many cores those that this process has the time of."""
    return min(cores, limit() or cores)


def limit(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Cores that the limit of processor time comes to, rounded up; None where there is none.

    It is the least of this process's control group and of those above it, whichever version of them there is.
    """
    shares = list(_shares(groups, own))
    return max(1, math.ceil(min(shares))) if shares else None


def _shares(groups: Path, own: Path) -> Iterator[float]:
    with suppress(OSError):  # another system has none
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = groups / "cpu" if controllers else groups
            # A container may see its own group as the top one, and not under the name that it has outside.
            folder = top / path.lstrip("/")
            for each in (folder, *folder.parents):
                if each.is_relative_to(top) and (share := _share(each)) is not None:
                    yield share


def _share(group: Path) -> float | None:
    """Of a group's own limit, in cores: of cgroups' second version, or of the first."""
    with suppress(OSError, ValueError):  # no such file; or "max", which is no number
        quota, period = map(int, (group / "cpu.max").read_text(encoding="utf-8").split())
        return quota / period
    with suppress(OSError, ValueError):
        quota, period = (
            int((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else None
    return None
