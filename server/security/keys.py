"""API keys: who callers are, and what each may do.

A key is 256 random bits, shown once, when it is made. The file holds its SHA-256: who reads the file can ask nothing.
A slow hash, such as passwords need, would protect against guessing what no one can guess, and cost every call its time.

    {"version": 1, "keys": [{"id": "5f0c...", "name": "homepage", "role": "read", "sha256": "...",
      "created_at": "2026-03-01T06:00:00+00:00", "expires_at": null, "requests_per_second": null}]}
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldframe.durable import sync_path
from coldframe.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from server.security.files import content
from server.security.limits import MOST_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VERSION = 1
_TOKEN = re.compile(r"cfk_([0-9a-f]{16})_[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FORMS = {"id": re.compile(r"[0-9a-f]{16}"), "name": _NAME, "sha256": re.compile(r"[0-9a-f]{64}")}
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


class Role(StrEnum):
    """What a key may do; each may do what those before it may."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def reaches(self, other: Role) -> bool:
        """Whether whoever has this role may do what needs the other."""
        order = [*Role]
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the file knows it."""

    id: str
    name: str
    role: Role
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None
    requests_per_second: float | None = None
    """Where this key differs from the rest."""

    def expired(self, now: datetime) -> bool:
        """Whether it is worth nothing any more."""
        return self.expires_at is not None and now >= self.expires_at


_FIELDS = tuple(field.name for field in fields(Key))


def new_key(
    name: str, role: Role, expires_at: datetime | None = None, requests_per_second: float | None = None
) -> tuple[str, Key]:
    """Draws a key: what the caller is to send, and what the server keeps of it. Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"a key's name is {name!r}; give 1 to 64 letters, digits, '.', '_' or '-', such as homepage", field="name"
        )
    now = datetime.now(UTC).replace(microsecond=0)
    if expires_at is not None and expires_at <= now:
        raise InvalidArgument(f"a key that expires on {expires_at:%Y-%m-%d} would be worth nothing", field="expires")
    if requests_per_second is not None and not 0 < requests_per_second <= MOST_RATE:
        raise InvalidArgument(
            f"{requests_per_second:g} requests per second are no limit; give a number above 0, up to {MOST_RATE:,.0f}",
            field="rate",
        )
    number = secrets.token_hex(8)
    token = f"cfk_{number}_{secrets.token_hex(32)}"
    return token, Key(number, name, role, _digest(token), now, expires_at, requests_per_second)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def identify(keys: Mapping[str, Key], token: str) -> Key:
    """Whose token it is. Raises Unauthenticated, in the same time and words whatever was wrong with an unknown one."""
    named = _TOKEN.fullmatch(token)
    key = keys.get(named[1]) if named else None
    same = hmac.compare_digest(_digest(token), key.sha256 if key else _NOBODY)
    if key is None or not same:
        raise Unauthenticated(
            "the key is not one of this server's; send one that it was told of, as 'authorization: Bearer cfk_...'"
        )
    if key.expired(datetime.now(UTC)):
        raise Unauthenticated(f"the key {key.name!r} has expired; ask this server's operator for a new one")
    return key


# --- the file --------------------------------------------------------------------------------------------------------


def read_keys(path: Path) -> dict[str, Key]:
    """Keys by id. Raises InvalidArgument for a file that cannot be read or is none of keys."""
    make = f"make one with: python -m server keys add --api-keys {path} --name NAME --role read"
    try:
        read = content(path)
        document = json.loads(read)
    except OSError as error:
        more = f"; {make}" if isinstance(error, FileNotFoundError) else ""
        raise _no_keys(path, f"{error.strerror}{more}") from error
    except (ValueError, RecursionError) as error:
        raise _no_keys(
            path, "it is not JSON; put the one of before back" if read else f"it is empty; {make}"
        ) from error
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise _no_keys(path, f'it has no "version": {_VERSION}')
    if not isinstance(document.get("keys"), list):
        raise _no_keys(path, 'it has no list of "keys"')
    keys = _listed(document["keys"], path)
    for key in keys.values():
        if key.requests_per_second is not None and not 0 < key.requests_per_second <= MOST_RATE:
            raise InvalidArgument(
                f"the key {key.name!r} in {path} has {key.requests_per_second:g} requests_per_second; give a number "
                f"above 0, up to {MOST_RATE:,.0f}, or null for as many as other keys may make",
                field="api_keys",
            )
    return keys


def _listed(entries: list[Any], path: Path) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            key = _key(entry)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else f"is none: {error}"
            raise _no_keys(path, f"key {number} of {len(entries)} {why}") from error
        if (other := keys.get(key.id)) is not None:  # of a copied entry only one would count, with whichever role
            raise _no_keys(path, f"{other.name!r} and {key.name!r} have the same id; each key has one of its own")
        keys[key.id] = key
    return keys


def _key(entry: dict[str, Any]) -> Key:
    """Raises some error of Python's for what is none."""
    if unknown := [*entry.keys() - {*_FIELDS}]:  # such as "expires": a key that was to end would not
        raise ValueError(f"{min(unknown)!r} is no field of a key, but {', '.join(_FIELDS)} are")
    for field, form in _FORMS.items():
        if not form.fullmatch(entry[field]):  # not said: it may be the key itself
            raise ValueError(f"its {field} is not of the form that `keys add` writes")
    expires, rate = entry.get("expires_at"), entry.get("requests_per_second")
    return Key(
        entry["id"],
        entry["name"],
        Role(entry["role"]),
        entry["sha256"],
        _moment(entry["created_at"]),
        None if expires is None else _moment(expires),
        None if rate is None else float(rate),
    )


def _moment(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _no_keys(path: Path, why: str) -> InvalidArgument:
    return InvalidArgument(f"the file of API keys {path} cannot be used: {why}", field="api_keys")


@contextmanager
def changed(path: Path) -> Iterator[dict[str, Key]]:
    """The keys of a file, to be changed; what they are in the end is written, whole. A file that is not there is made,
    one that is empty is begun.

    Others who change it wait. Raises InvalidArgument, and FailedPrecondition where it cannot be written.
    """
    path = path.resolve()  # not in the place of a link: who reads the file itself must be told, too
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        # An empty file, as mktemp makes one, holds no keys yet; a pipe or a device, empty too, is read and so refused.
        begun = path.exists() and not (path.is_file() and not path.stat().st_size)
        keys = read_keys(path) if begun else {}
        yield keys
        _write(path, keys)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(folder)


def _unwritable(path: Path, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"the file of API keys {path} cannot be written ({error.strerror})")


def _write(path: Path, keys: Mapping[str, Key]) -> None:
    """A reader, or a crash, finds the old keys or the new ones. Only the owner may read them, unless told otherwise."""
    document = {"version": _VERSION, "keys": [_entry(key) for key in keys.values()]}
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
            file.flush()
            _keep_rights(file.fileno(), path)
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def _keep_rights(descriptor: int, path: Path) -> None:
    """The server that reads the file may be another user than the one who changes it."""
    with suppress(FileNotFoundError, PermissionError):
        before = path.stat()
        os.fchmod(descriptor, before.st_mode & 0o777)
        os.fchown(descriptor, before.st_uid, before.st_gid)


def _entry(key: Key) -> dict[str, Any]:
    expires = None if key.expires_at is None else key.expires_at.isoformat()
    return asdict(key) | {"created_at": key.created_at.isoformat(), "expires_at": expires}


def removed(keys: dict[str, Key], name: str) -> list[Key]:
    """Takes the keys of that name, or the one of that id, away. Raises NotFound where there is none."""
    gone = [key for key in keys.values() if name in {key.name, key.id}]
    if not gone:
        raise NotFound(
            f"there is no key {name!r}; the file holds: {', '.join(k.name for k in keys.values()) or 'none'}"
        )
    for key in gone:
        del keys[key.id]
    return gone
