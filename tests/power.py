"""What a power cut would take: all that was written, or given a name, and that nobody waited for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest


class Power:
    """Watches what this process renames, links and syncs.

    needs: folders in which all must be on the disk before a file of that name is there. Drafts are nobody's loss.
    """

    def __init__(self, patch: pytest.MonkeyPatch, needs: Mapping[str, Path] | None = None) -> None:
        self._needs = needs or {}
        self._synced: set[tuple[int, ...]] = set()
        self._names: dict[int, str] = {}
        self._contents: list[str] = []
        for call, watched in (("fsync", self._sync), ("rename", self._move), ("replace", self._move)):
            patch.setattr(os, call, watched(getattr(os, call)))
        patch.setattr(os, "link", self._name(os.link))

    @property
    def lost(self) -> list[str]:
        """What a power cut at some moment, up to this one, would take."""
        return [*self._contents, *self._names.values()]

    def _sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            real(descriptor)
            found = os.fstat(descriptor)
            self._synced.add(_state(found))
            self._names.pop(found.st_ino, None)

        return sync

    def _move(self, real: Callable[..., None]) -> Callable[..., None]:
        name = self._name(real)

        def move(source: Any, target: Any) -> None:
            if Path(target).parent.name == "drafts":
                real(source, target)
                return
            needed = self._needs.get(Path(target).name)
            parts = [Path(source), *Path(source).rglob("*"), *([] if needed is None else needed.rglob("*"))]
            self._contents += [path.name for path in parts if _state(path.stat()) not in self._synced]
            name(source, target)

        return move

    def _name(self, real: Callable[..., None]) -> Callable[..., None]:
        def name(source: Any, target: Any) -> None:
            real(source, target)
            self._names[Path(target).parent.stat().st_ino] = f"the name of {Path(target).name}"

        return name


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns
