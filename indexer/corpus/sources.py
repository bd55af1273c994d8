"""What there is to read: the files, folders, globs and addresses that `--corpus` names, or the query of `--query`."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument
from indexer.corpus.formats import allowed_formats, known_format, read_file
from indexer.corpus.opening import File, LocalFile, RemoteFile, explain

if TYPE_CHECKING:
    from indexer.corpus.articles import Columns, Rows

Say = Callable[[str], None]
_NAMED_SKIPPED = 3
_SILENCE_S = 300
"""A web server that sends nothing for so long is given up."""
# What stores and servers tell of an object that changes when its content does, best first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "last_modified", "mtime")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one query. The package's docstring says what `name`, `location`, `size` and `version` are."""

    name: str
    location: str
    size: int | None
    version: str | None
    rows: Callable[[Columns], Rows] = field(repr=False, compare=False)
    """Read it, from its beginning; InvalidArgument, then or on the way, if it cannot be read."""
    position: Callable[[], int | None] = field(default=lambda: None, repr=False, compare=False)
    """How many of its bytes, of `size`, the reading under way has taken; None where nobody knows."""
    address: str = ""
    """Digest of a whole address, of which `location` is the public part."""


def find_sources(
    corpus: Sequence[str] = (),
    query: str | None = None,
    database: str | None = None,
    *,
    say: Say | None = None,
    apart_from: Sequence[Path] = (),
) -> list[Source]:
    """List what is to be read: files ordered by where they are, each once; or the query.

    `apart_from` are files and folders that are none of the corpus, though a folder of it may hold them.

    Raises InvalidArgument (fields corpus, query, database) for what names nothing, or cannot be read as it stands.
    """
    if query is not None:
        if corpus:
            raise _invalid("give either --corpus or --query; a query names its files itself: select ... from 'a.csv'")
        from indexer.corpus.queries import find_query

        location, rows = find_query(query, database)
        return [Source("query", location, None, None, rows)]
    if database is not None:
        raise InvalidArgument(
            "--database needs a --query that says what to read of it: select id, title, content from articles",
            field="query",
        )
    if not corpus:
        raise _invalid("there is nothing to read: give --corpus a file, a folder, a quoted glob or a URL, or --query")
    if "" in corpus:  # a variable that is not set; it would be the folder at hand, with whatever is in it
        raise _invalid("--corpus is empty; give a file, a folder, a quoted glob or a URL, or '.' for this folder")
    found: dict[str, Source] = {}
    others = {os.path.realpath(path) for path in apart_from}
    for value in corpus:
        for key, source in _find(value, say or (lambda _sentence: None), others):
            found.setdefault(key, source)
    return _named([found[key] for key in sorted(found, key=lambda key: key.split("/"))])


def source_of(path: Path) -> Source:
    """One local file, there or not."""
    return _file_source(LocalFile(path), None, None, f"{path}: ")


def _find(value: str, say: Say, others: set[str]) -> Iterator[tuple[str, Source]]:
    """Every file that a value names, by a key that is the same however the file is named."""
    if "://" not in value:
        return _find_local(value, Path(os.path.expanduser(value)), say, others)  # Path's own fails for no user's ~name
    filesystem, key = _filesystem(value)
    if "file" in filesystem.protocol:
        return _find_local(value, Path(key), say, others)
    return _find_remote(value, filesystem, key, say)


def _named(sources: list[Source]) -> list[Source]:
    """Name each by as much of the end of its path as tells it from all others, and by a number where none does."""
    parts = [PurePosixPath(source.location).parts for source in sources]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(some[-length:]) for some in parts]
        if len(set(names)) == len(set(parts)):
            break
    alike, numbers = Counter(names), Counter[str]()
    for n, name in enumerate(names):
        numbers[name] += 1
        names[n] = f"{name} ({numbers[name]})" if alike[name] > 1 else name
    return [replace(source, name=name) for source, name in zip(sources, names, strict=True)]


def _file_source(file: File, size: int | None, version: str | None, flag: str = "") -> Source:
    if known_format(file.path) is None:
        raise _invalid(f"{flag}{file.location}: the format is not known. {allowed_formats()}")
    return Source(
        PurePosixPath(file.location).name, file.location, size, version, partial(read_file, file), file.position
    )


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, field="corpus")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED_SKIPPED]) + (", ..." if len(names) > _NAMED_SKIPPED else "")


def _tell_skipped(folder: str, taken: int, skipped: Sequence[str], say: Say) -> None:
    """Say what of a folder is not read, and refuse one of which nothing is."""
    if not taken:
        only = f", only {_some(skipped)}" if skipped else ""
        raise _invalid(f"--corpus {folder}: the folder holds no corpus file{only}. {allowed_formats()}")
    if skipped:
        said = f"{taken:,} file(s) are read, {len(skipped):,} skipped that are no corpus files"
        say(f"{folder}: {said}: {_some(skipped)}")


def _tell_folders(pattern: str, taken: int, folders: Sequence[str], say: Say) -> None:
    """Say which folders a glob names besides files, for they are not read, and refuse one that names nothing else."""
    if folders and not taken:
        held = f"it names only folders, {_some(folders)}"
        raise _invalid(f"--corpus {pattern}: {held}. For what is in them say {pattern}/**")
    if folders:
        said = f"{taken:,} file(s) are read, {len(folders):,} folder(s) skipped: {_some(folders)}"
        say(f"{pattern}: {said}; for what is in them say {pattern}/** too")


# --- here ------------------------------------------------------------------------------------------------------------


def _find_local(value: str, path: Path, say: Say, others: set[str]) -> Iterator[tuple[str, Source]]:
    try:
        found = [(each, each.stat()) for each in _list_local(path, say, others)]
    except OSError as error:
        raise _invalid(
            f"--corpus {value}: {error.filename} cannot be read ({error.strerror}). Give what can be read whole."
        ) from error
    if not found:
        raise _invalid(
            f"--corpus {value}: there is no such file. Give a file, a folder, a URL, or a glob in quotes such as "
            "'news/*.csv'."
        )
    for each, stat in found:
        yield os.path.abspath(each), _file_source(LocalFile(each), stat.st_size, f"{stat.st_mtime_ns}")


def _list_local(path: Path, say: Say, others: set[str]) -> list[Path]:
    """The files that a path names. Raises OSError where one that it leads through cannot be read."""
    if path.is_dir():
        return _walk(path, say, others)
    if path.exists():
        return [path]
    _check_ways(path)
    named = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    found = [each for each in named if each.is_file()]
    if "**" not in path.parts:  # which leads into the folders that it names
        _tell_folders(str(path), len(found), [f"{each.name}/" for each in named if each.is_dir()], say)
    return found


def _check_ways(pattern: Path) -> None:
    """Raise OSError for a folder that a glob leads through and that cannot be listed; `glob` passes over it."""
    ways = [pattern] if pattern.name == "**" else []
    for way in [*ways, *pattern.parents]:
        if glob.has_magic(str(way)) or glob.has_magic(pattern.parts[len(way.parts)]):
            for folder in glob.glob(os.path.join(way, ""), recursive=True):
                os.scandir(folder).close()
                os.stat(os.path.join(folder, os.curdir))  # names are of no use where what they name is out of reach


def _walk(folder: Path, say: Say, others: set[str]) -> list[Path]:
    """The corpus files of a folder and of those in it, without `others`. Hidden files are left out, and so are linked
    folders: a link may lead in a circle.
    """
    paths: list[Path] = []
    skipped: list[str] = []
    for name, folders, files in os.walk(folder, onerror=_raise):
        here, real = Path(name), os.path.realpath(name)
        apart = {inner for inner in (*folders, *files) if os.path.join(real, inner) in others}
        closed = {inner for inner in folders if inner in apart or _hidden(inner) or (here / inner).is_symlink()}
        folders[:] = sorted({*folders} - closed)
        usable = {file for file in files if file not in apart and _in_corpus(file) and (here / file).is_file()}
        paths += [here / file for file in sorted(usable)]
        skipped += [*(f"{inner}/" for inner in sorted(closed)), *sorted({*files} - usable)]
    _tell_skipped(str(folder), len(paths), skipped, say)
    return paths


def _raise(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen; also what Spark and its kin leave: _SUCCESS, _temporary."""
    return name.startswith((".", "_"))


def _in_corpus(path: str) -> bool:
    return known_format(PurePosixPath(path)) is not None and not any(map(_hidden, path.split("/")))


# --- elsewhere -------------------------------------------------------------------------------------------------------


def _filesystem(value: str) -> tuple[Any, str]:
    """The driver of an address, and its own name for what the address names."""
    import fsspec

    try:
        filesystem, key = fsspec.core.url_to_fs(value, **_driver_options(value))
    except ImportError as error:  # its text names the package: Install s3fs to access S3
        raise _invalid(
            f"--corpus {_public(value)}: the driver for this kind of address is missing. {error}."
        ) from error
    except Exception as error:
        raise _invalid(f"--corpus {_public(value)}: this address cannot be read: {error}") from error
    return filesystem, key


def _driver_options(value: str) -> dict[str, Any]:
    """For the drivers of web servers, by scheme: a transfer may take any time, aiohttp's own bound is five minutes."""
    schemes = {part.partition("://")[0] for part in value.split("::")} & {"http", "https"}
    if not schemes:
        return {}
    from aiohttp import ClientTimeout

    patient = ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    return {scheme: {"client_kwargs": {"timeout": patient}} for scheme in schemes}


def _find_remote(value: str, filesystem: Any, key: str, say: Say) -> Iterator[tuple[str, Source]]:
    try:
        found = _list_remote(filesystem, key, say)
    except InvalidArgument:
        raise
    except Exception as error:
        raise _invalid(f"--corpus {_public(value)} cannot be read: {explain(error, key, _public(value))}.") from error
    if not found:
        raise _invalid(f"--corpus {_public(value)}: there is no such file.")
    for name, info in found.items():
        location = _public(filesystem.unstrip_protocol(name))
        version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None)
        source = _file_source(RemoteFile(filesystem, name, location), info.get("size"), version)
        whole = _whole(filesystem, name)
        yield whole, replace(source, address=hashlib.sha256(whole.encode()).hexdigest()[:16])


def _list_remote(filesystem: Any, key: str, say: Say) -> Mapping[str, Mapping[str, Any]]:
    """Key -> what the store tells of the file, for a file, a glob, or a folder."""
    over_http = "http" in filesystem.protocol
    if glob.has_magic(key.partition("?")[0] if over_http else key):
        named = filesystem.glob(key, detail=True)
        found = _files(named)
        if "**" not in key:
            folders = [f"{PurePosixPath(name).name}/" for name in sorted(named) if name not in found]
            _tell_folders(_public(filesystem.unstrip_protocol(key)), len(found), folders, say)
    elif (over_http and key.endswith("/")) or (not over_http and filesystem.isdir(key)):
        everything = _files(filesystem.find(key, detail=True))
        found = {name: info for name, info in everything.items() if _in_corpus(_path(name.removeprefix(key)))}
        skipped = [PurePosixPath(_path(name)).name for name in everything if name not in found]
        _tell_skipped(_public(filesystem.unstrip_protocol(key)), len(found), skipped, say)
    else:
        return {key: filesystem.info(key)}
    # A listing of a web server is of names alone.
    return {name: filesystem.info(name) if over_http else info for name, info in found.items()}


def _files(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: found[name] for name in sorted(found) if found[name].get("type") == "file"}


def _path(url: str) -> str:
    return url.partition("?")[0]


def _public(url: str) -> str:
    """An address without what may be secret: user and password, a signature in the query string."""
    return re.split(r"[?#]", re.sub(r"//[^/]*@", "//", url), maxsplit=1)[0]


def _whole(filesystem: Any, name: str) -> str:
    """All that tells a file from others: its query string, its server, what it is packed in; but no password."""
    address = re.sub(r"(//[^/@:]*):[^/]*@", r"\1@", filesystem.unstrip_protocol(name))
    options = json.loads(json.dumps(filesystem.storage_options, default=str), object_hook=_that_tell)
    return f"{address} {json.dumps(options, sort_keys=True)}"


def _that_tell(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("password", "client_kwargs")}
