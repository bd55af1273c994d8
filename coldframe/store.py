"""A folder of generations, and which of them is served.

STORE/generations/<UTC time>-<digest>/   immutable once they are there
STORE/CURRENT                            the served one's name, replaced atomically
STORE/HISTORY                            names that were served before, the last one last
STORE/PUBLISHING                         a name, while a build is published: what a crash interrupts is made good
STORE/drafts/job/                        the build under way, or one that was killed; never served
STORE/LOCK                               held by whoever builds or prunes
STORE/live.db                            articles that came and went online (`coldframe.live`)
STORE/embeddings.db                      vectors that were computed once (`indexer.cache`)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import sqlite3
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from coldframe import checksums
from coldframe.durable import replace_text, sync_path, sync_tree
from coldframe.errors import ColdframeError, CorruptGeneration, FailedPrecondition, InvalidArgument, NoGeneration
from coldframe.shortage import MORE_FILES, NO_FILES, NO_ROOM, SEE_TO_DISK, known_errno

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from coldframe.generation import Generation, Manifest

_NAME = re.compile(r"\d{8}T\d{6}Z-")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_HISTORY_NAMES = 100
_FILES = {"CURRENT", "HISTORY", "PUBLISHING", "LOCK"}
_MOMENT_S, _LOOK_S = 0.5, 0.01
_PARTIAL_S = 60.0  # younger ones may be of somebody who activates a generation at this moment


class Store:
    """The folder. Making the object touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._generations = self.path / "generations"
        self._current = self.path / "CURRENT"
        self._history = self.path / "HISTORY"
        self._publishing = self.path / "PUBLISHING"
        self._drafts = self.path / "drafts"
        self._job = self._drafts / "job"

    def names(self) -> list[str]:
        """The generations, the oldest first; those that were kept and not published among them."""
        with self._reading():
            if not self._generations.is_dir():
                return []
            return sorted(entry.name for entry in self._generations.iterdir() if _is_generation(entry))

    def current(self) -> str | None:
        """The name of the served generation; None where nothing was published yet.

        Raises InvalidArgument where the store is no folder, or none that can be read.
        """
        with self._reading():
            return next(iter(_lines(self._current)), None)

    def before(self) -> str | None:
        """The generation that was served before the current one and is still there; None if there is none."""
        current, names = self.current(), self.names()
        with self._reading():
            served = _lines(self._history)
        if not self._history.exists():  # of a Coldframe that kept none, and published whatever it built
            served = [name for name in names if current and name < current]
        return next((name for name in reversed(served) if name != current and name in names), None)

    def kept_back(self) -> list[str]:
        """The generations that their build kept back, and that nobody has activated."""
        with self._reading():
            served = {self.current(), *_lines(self._history)}
        unserved = {name: _manifest(self._generations / name) for name in self.names() if name not in served}
        return [name for name, manifest in unserved.items() if manifest is not None and manifest.held]

    def directory(self, name: str) -> Path:
        """Where a generation lies. Raises InvalidArgument for a name that the store does not hold."""
        if name not in self.names():
            known = ", ".join(self.names()) or "none yet"
            raise InvalidArgument(f"there is no generation {name!r} in this store; it holds: {known}", field="name")
        return self._generations / name

    def open(self, name: str | None = None) -> Generation:
        """Opens and verifies a generation, the current one by default. Raises NoGeneration or CorruptGeneration."""
        from coldframe.generation import Generation

        return Generation(self.find(name))

    def find(self, name: str | None = None) -> Path:
        """Where a generation lies, the current one by default. Raises as `open` does."""
        self._require_path()
        chosen = self.current() if name is None else name
        if chosen is None:
            if not self.names():
                raise NoGeneration(
                    "nothing has been published in this store yet; build it: python -m indexer build --corpus FILE "
                    "--store DIR"
                )
            raise NoGeneration(
                f"no generation of this store is current, for it has no CURRENT or an empty one; choose one of those "
                f"that lie there: python -m indexer activate {self.names()[-1]} --store DIR"
            )
        if chosen not in self.names() and chosen == self.current():
            raise CorruptGeneration(
                f"CURRENT names the generation {chosen!r}, which is not in the store; activate another one: "
                f"python -m indexer list, activate"
            )
        return self.directory(chosen)

    def read_ahead(self) -> None:
        """Begins to read the files of the current generation, which `open` will verify."""
        if (name := self.current()) is not None:
            checksums.read_ahead(self._generations / name)

    # --- which one is served -----------------------------------------------------------------------------------------

    def activate(self, name: str) -> None:
        """Makes a generation the current one, in one atomic step.

        Raises InvalidArgument for a name that the store does not hold, and where the store cannot be written.
        """
        self.directory(name)
        self._mend_if_idle()
        self._make_current(name)

    def _make_current(self, name: str) -> None:
        with self._choosing(), self._writing():
            self.directory(name)  # it may have been pruned by now
            current, served = self.current(), _lines(self._history)
            if current not in {None, name, *served[-1:]}:
                served.append(str(current))
            # A crash between the two leaves the current name at the end of the history, where `before` passes over it.
            replace_text(self._history, _text(served[-_HISTORY_NAMES:]))
            replace_text(self._current, _text([name]))

    def rollback(self) -> str:
        """Makes the generation current that was so before, and gives its name.

        Called again, it goes back one more. Raises FailedPrecondition where there is none to go back to.
        """
        self._mend_if_idle()
        with self._choosing(), self._writing():
            name = self.before()
            if name is None:
                raise FailedPrecondition(
                    f"there is nothing to go back to: {self.path} holds no generation served before"
                )
            served = _lines(self._history)
            replace_text(self._current, _text([name]))
            while served and served.pop() != name:
                pass
            replace_text(self._history, _text(served))
        return name

    @contextlib.contextmanager
    def _choosing(self) -> Iterator[None]:
        """No other one makes a generation current meanwhile, or takes any away. It is for milliseconds, and beside a
        build, which may hold the store for hours.
        """
        with self._reading():
            folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
            except OSError as error:
                raise self._without_locks(error) from error
            yield
        finally:
            os.close(folder)

    def publish(self, draft: Path, name: str) -> Path:
        """Moves a whole draft among the generations and makes it current. After this it never changes.

        Killed at any point, the next one who takes the lock ends it.
        """
        sync_tree(draft)
        with self._writing():
            replace_text(self._publishing, _text([name]))
        target = self.keep(draft, name)
        self._end_publication(name)
        return target

    def _end_publication(self, name: str) -> None:
        self._make_current(name)
        self.discard()
        self._publishing.unlink(missing_ok=True)

    def keep(self, draft: Path, name: str) -> Path:
        """Moves a whole draft among the generations, and leaves the current one as it is."""
        sync_tree(draft)
        with self._writing():
            self._generations.mkdir(exist_ok=True)
            target = self._generations / name
            if target.exists():
                # The same input built again within the same second: the same name, the same bytes.
                shutil.rmtree(draft)
            else:
                draft.rename(target)
            sync_path(self._generations)
            sync_path(self.path)
        return target

    # --- one who builds or prunes ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """The folder to build in, with what a build that was killed left there. It stays until `discard` or `publish`.

        Holds the store's lock: one build at a time. Raises FailedPrecondition where another one holds it, or its file
        system keeps none, and InvalidArgument where the store cannot be written.
        """
        with self.locked(create=True):
            with self._writing():
                self._job.mkdir(parents=True, exist_ok=True)
                self._require_one_disk()
            try:
                yield self._job
            finally:
                with contextlib.suppress(OSError):  # it is not empty, and shall stay
                    self._job.rmdir()
                    self._drafts.rmdir()

    def _require_one_disk(self) -> None:
        """What is built is moved among the generations in one step: better refused now than after hours."""
        if self._generations.is_dir():
            probe, moved = (folder / f"{uuid.uuid4().hex}.probe" for folder in (self._generations, self._drafts))
            probe.mkdir()
            try:
                probe.rename(moved)
            except OSError:
                probe.rmdir()
                raise
            moved.rmdir()

    def discard(self) -> None:
        """Clears the draft away."""
        with contextlib.suppress(OSError):  # there is none
            # Out of sight at once: killed among its files, half a draft must not pass for an unfinished build.
            self._job.rename(self._drafts / "discarded")
        self._clear_strays()

    def _clear_strays(self) -> None:
        """Takes away what nobody will finish."""
        strays = [path for path in self._drafts.iterdir() if path != self._job] if self._drafts.is_dir() else []
        for stray in strays:
            if stray.is_dir():
                shutil.rmtree(stray, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    stray.unlink()
        with contextlib.suppress(OSError):  # there is none, or an unfinished build lies in it
            self._drafts.rmdir()

    def unfinished(self) -> bool:
        """Whether a build was killed and can be gone on with."""
        return self._job.is_dir()

    def prune(self, keep: int) -> dict[str, int]:
        """Removes all but the newest `keep` generations, the current one and the one before it; the lock is held.

        Those that were kept back do not count, or some bad nights would push out all that is good: the newest `keep` of
        them stay beside the others, and none that is older than the current one. Returns the bytes freed by name.
        Raises InvalidArgument where none would be kept or the store cannot be written.
        """
        check_keep(keep)
        freed = {}
        with self._choosing():
            names, current, held = self.names(), self.current(), self.kept_back()
            published = [name for name in names if name not in held]
            waiting = [name for name in held if current is None or name > current]
            kept = {*published[-keep:], *waiting[-keep:], current, self.before()}
            for name in names:
                if name not in kept:
                    freed[name] = _size(self._generations / name)
                    self._put_away(name)
        self._clear_strays()
        return freed

    def _put_away(self, name: str) -> None:
        """Out of sight at once: a crash while its files go must not leave half a generation. Where there is no folder
        for what goes, it becomes that folder: a full disk, on which people prune, may have no room for one more.
        """
        with self._writing():
            if (self._generations / name).is_symlink():  # what it points to lies where somebody else put it
                (self._generations / name).unlink()
                return
            there = self._drafts.exists()
            (self._generations / name).rename(self._drafts / name if there else self._drafts)

    @contextlib.contextmanager
    def locked(self, *, create: bool = False, wait_s: float = _MOMENT_S) -> Iterator[None]:
        """Holds the store against other builds, after what a crash interrupted has been made good. Waits a moment for
        somebody who activates a generation and looks whether there is anything to be made good.

        Raises InvalidArgument where there is no such folder, unless it is to be made.
        """
        with self._writing():
            self._require(create)
            handle = (self.path / "LOCK").open("w")
        with handle:
            self._take(handle, wait_s)
            self._mend()
            yield

    def _take(self, handle: TextIO, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise self._without_locks(error) from error
                if time.monotonic() >= deadline:
                    raise FailedPrecondition(
                        f"another build is at work in {self.path}; wait for it, or build into another store"
                    ) from error
            time.sleep(_LOOK_S)

    def _without_locks(self, error: OSError) -> FailedPrecondition:
        return FailedPrecondition(
            f"the file system of the store {self.path} keeps no locks ({error.strerror}); keep the store on a local "
            f"disk, never on NFS"
        )

    def _require(self, create: bool) -> None:
        if create:
            self._require_path()
        if self.path.is_dir():
            return
        if not create:
            raise InvalidArgument(
                f"there is no store {self.path}; give the folder that a build published into", field="store"
            )
        if self.path.name in _FILES:
            raise InvalidArgument(
                f"the store cannot be {self.path}: {self.path.name} is a file in every store; give the folder, or "
                f"another name",
                field="store",
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def _require_path(self) -> None:
        """FAISS takes paths as text; and of a URL, which a corpus may have, a folder of that name would be made."""
        if _URL.match(str(self.path)) and not self.path.is_dir():
            raise InvalidArgument(
                f"the store cannot be {self.path}: it is a folder of this machine; give its path, and no scheme",
                field="store",
            )
        if str(self.path) != os.fsencode(self.path).decode(errors="replace"):
            raise InvalidArgument(
                f"the store cannot be {self.path}: that is no UTF-8; give another folder, or set LC_ALL=C.UTF-8",
                field="store",
            )

    def _mend_if_idle(self) -> None:
        """What a crash left half published must not be published over what a person chooses now."""
        with contextlib.suppress(FailedPrecondition), self.locked(wait_s=0.0):
            pass

    def _mend(self) -> None:
        """Makes good what a crash interrupted: ends a publication, and clears away what nobody will finish."""
        for name in _lines(self._publishing):
            if name in self.names():
                self._end_publication(name)
            elif (sealed := _manifest(self._job / "generation")) is not None and sealed.name == name:
                self.publish(self._job / "generation", name)
            else:
                self._publishing.unlink()
        self._clear_strays()
        for partial in self.path.glob("*.partial"):
            with contextlib.suppress(FileNotFoundError):  # it was of the living, and is in its place now
                if time.time() - partial.stat().st_mtime > _PARTIAL_S:
                    partial.unlink()

    # --- a store that cannot be read or written ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidArgument(
                f"the store {self.path} is no folder that can be read ({os.strerror(error.errno or 0)}); give the one "
                f"that a build published into",
                field="store",
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refusal(error) from error

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Says in a sentence when the block finds no room or no right to write in the store; else errors pass.

        Raises FailedPrecondition for want of room, InvalidArgument for want of the right.
        """
        try:
            yield
        except (OSError, sqlite3.Error, RuntimeError) as error:
            known = known_errno(error)
            if known is None or not self._is_own(getattr(error, "filename", None)):
                raise
            raise self._refusal(OSError(known, str(error))) from error

    def _is_own(self, file: object) -> bool:
        return not isinstance(file, str | Path) or Path(file).resolve().is_relative_to(self.path.resolve())

    def _refusal(self, error: OSError) -> ColdframeError:
        if error.errno in NO_ROOM:
            return FailedPrecondition(
                f"there is no room for what is written to the store {self.path} ({os.strerror(error.errno or 0)}); the "
                f"current generation is as it was and what is done of this build is kept. Make room (python -m indexer "
                f"prune --help), and the same command goes on"
            )
        if error.errno in NO_FILES:
            return FailedPrecondition(
                f"the store {self.path} cannot be written ({os.strerror(error.errno or 0)}); {MORE_FILES}"
            )
        if error.errno == errno.EIO:
            return FailedPrecondition(
                f"the store {self.path} cannot be read or written ({os.strerror(errno.EIO)}); {SEE_TO_DISK}"
            )
        if error.errno == errno.EXDEV:
            return FailedPrecondition(
                f"generations and drafts of the store {self.path} lie on different disks or mounts, or came with an "
                f"image (overlayfs), and nothing can be moved between them in one step; keep the whole store on one, "
                f"and link or mount the store itself"
            )
        return InvalidArgument(
            f"the store {self.path} cannot be written ({os.strerror(error.errno or 0)}); choose a folder that you may "
            f"write to",
            field="store",
        )


def check_keep(generations: int) -> None:
    """Raises InvalidArgument where pruning would keep none."""
    if generations < 1:
        raise InvalidArgument(f"--keep is {generations}; at least 1 generation is kept", field="keep")


def _manifest(directory: Path) -> Manifest | None:
    """None where there is none that can be read."""
    from coldframe.generation import Manifest

    try:
        return Manifest.read(directory)
    except ColdframeError:
        return None


def _lines(path: Path) -> list[str]:
    """The lines of a small file that are not empty; none where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return []


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _is_generation(path: Path) -> bool:
    """By its name or, where a person gave it another one, by its manifest: lost+found is none, nor a snapshot."""
    named = _NAME.match(path.name) is not None
    return path.is_dir() and (named or os.path.isfile(path / "manifest.json"))  # which no folder without rights stops


def _size(directory: Path) -> int:
    if directory.is_symlink():
        return 0
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
