"""A folder of generations, and which of them is served.

STORE/generations/<UTC time>-<digest>/   immutable once they are there
STORE/CURRENT                            the served one's name, replaced atomically
STORE/drafts/                            builds under way; a name here is never served
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe.errors import CorruptGeneration, FailedPrecondition, InvalidArgument, NoGeneration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coldframe.generation import Generation


class Store:
    """The folder. Making the object touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._generations = self.path / "generations"
        self._current = self.path / "CURRENT"

    def names(self) -> list[str]:
        """Published generations, the oldest first."""
        if not self._generations.is_dir():
            return []
        return sorted(entry.name for entry in self._generations.iterdir() if entry.is_dir())

    def current(self) -> str | None:
        """The name of the served generation; None where nothing was published yet.

        Raises InvalidArgument where the store is no folder.
        """
        try:
            return self._current.read_text(encoding="utf-8", errors="replace").strip() or None
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise InvalidArgument(
                f"the store {self.path} is no folder; give the one that a build published into", field="store"
            ) from error

    def directory(self, name: str) -> Path:
        """Where a generation lies. Raises InvalidArgument for a name that the store does not hold."""
        if name not in self.names():
            known = ", ".join(self.names()) or "none yet"
            raise InvalidArgument(f"there is no generation {name!r} in this store; it holds: {known}", field="name")
        return self._generations / name

    def open(self, name: str | None = None) -> Generation:
        """Opens and verifies a generation, the current one by default. Raises NoGeneration or CorruptGeneration."""
        from coldframe.generation import Generation

        chosen = name or self.current()
        if chosen is None:
            raise NoGeneration(
                "nothing has been published in this store yet; build it: python -m indexer build --corpus FILE "
                "--store DIR"
            )
        if name is None and chosen not in self.names():
            raise CorruptGeneration(
                f"CURRENT names the generation {chosen!r}, which is not in the store; activate another one: "
                f"python -m indexer list, activate"
            )
        return Generation(self.directory(chosen))

    def activate(self, name: str) -> None:
        """Makes a published generation the current one, in one atomic step.

        Raises InvalidArgument for a name that the store does not hold, and where the store cannot be written.
        """
        self.directory(name)
        with self._writing():
            _replace(self._current, name + "\n")

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty folder to build in, gone when the block ends unless it was published.

        Holds the store's lock: one build at a time. Raises FailedPrecondition where another one holds it, and
        InvalidArgument where the store cannot be written.
        """
        with self._locked():
            drafts = self.path / "drafts"
            # What lies here now was left by a build that was killed: its lock is free, nobody will finish it.
            shutil.rmtree(drafts, ignore_errors=True)
            with self._writing():
                drafts.mkdir()
            try:
                yield Path(tempfile.mkdtemp(dir=drafts))
            finally:
                shutil.rmtree(drafts, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidArgument(
                f"the store {self.path} cannot be written ({os.strerror(error.errno or 0)}); choose a folder that you "
                f"may write to",
                field="store",
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / "LOCK").open("w")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                raise FailedPrecondition(
                    f"another build is at work in {self.path}; wait for it, or build into another store"
                ) from error
            yield

    def publish(self, draft: Path, name: str) -> Path:
        """Moves a whole draft among the generations and makes it current. After this it never changes."""
        _sync_tree(draft)
        self._generations.mkdir(exist_ok=True)
        target = self._generations / name
        if target.exists():
            # The same input built again within the same second: the same name, the same bytes.
            shutil.rmtree(draft)
        else:
            draft.rename(target)
        _sync(self._generations)
        self.activate(name)
        return target


def _replace(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, finds the old text or the new one, whole."""
    # A name of its own: a person may activate a generation while a build publishes another.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(path.parent)


def _sync_tree(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
