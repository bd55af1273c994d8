"""The file of API keys: what is in it and may not be, and who is told of a change."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from coldframe.errors import InvalidArgument
from server.security.certificates import CertificateFiles, read_certificate
from server.security.guard import Guard
from server.security.keys import changed, read_keys, removed
from tests import certificates
from tests.guarded import add_key
from tests.power import Power
from tests.rights import nobody

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_key_is_taken_away_from_the_file_itself_where_a_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    own, link = tmp_path / "secrets" / "keys.json", tmp_path / "keys.json"
    add_key(own, name="left-the-house")
    link.symlink_to(own)
    with changed(link) as keys:
        removed(keys, "left-the-house")
    assert link.is_symlink()
    assert read_keys(own) == read_keys(link) == {}


def test_a_power_cut_brings_no_key_back_that_was_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, power = tmp_path / "keys.json", Power(monkeypatch)
    add_key(path, name="left-the-house")
    with changed(path) as keys:
        removed(keys, "left-the-house")
    assert power.lost == []


def test_a_pipe_in_the_place_of_a_file_is_refused_and_nobody_waits_for_who_writes_it(tmp_path: Path) -> None:
    """A server that waited there would hear of no key that is taken away, ever again."""
    own, keys = certificates.files(tmp_path / "tls"), tmp_path / "keys.json"
    add_key(keys)
    guard = Guard(keys=keys)
    for path in (keys, own.key):
        path.unlink()
        os.mkfifo(path)
    guard.refresh()
    assert guard.refused() == {"API keys": True}
    with pytest.raises(InvalidArgument, match="it is no regular file, which can be read again"):
        read_certificate(CertificateFiles(own.chain, own.key))
    with pytest.raises(InvalidArgument, match="it is no regular file"):
        add_key(keys)
    assert keys.is_fifo()  # and nothing was put in its place


def test_an_empty_file_is_begun_and_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch()
    path.chmod(0o640)
    with pytest.raises(InvalidArgument, match="it is empty; make one with"):
        read_keys(path)
    add_key(path, name="home")
    assert [key.name for key in read_keys(path).values()] == ["home"]
    assert path.stat().st_mode & 0o777 == 0o640


def entries(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the second of two keys by hand."""
    document = json.loads(path.read_text())
    change(document["keys"][1])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda entry: entry.pop("role"), "key 2 of 2 lacks 'role'"),
        (lambda entry: entry.update(role="reader"), "key 2 of 2 is none: 'reader' is not a valid Role"),
        (lambda entry: entry.update(expires_at="tomorrow"), "key 2 of 2 is none: .*'tomorrow'"),
        (lambda entry: entry.update(expires="2026-01-01"), "key 2 of 2 is none: 'expires' is no field"),
        (lambda entry: entry.update(id="homepage"), "key 2 of 2 is none: its id is not of the form"),
        (lambda entry: entry.update(sha256="cfk_pasted"), "key 2 of 2 is none: its sha256 is not of the form"),
    ],
)
def test_a_key_that_is_none_is_named_and_never_shown(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    path = tmp_path / "keys.json"
    for name in ("home", "ingest"):
        add_key(path, name=name)
    entries(path, change)
    with pytest.raises(InvalidArgument, match=why) as raised:
        read_keys(path)
    assert "cfk_" not in raised.value.message
    assert "keys add --api-keys" not in raised.value.message, "which would be refused in the same words"


def test_a_key_that_was_copied_is_refused_whatever_the_copy_may_do(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, name="home")
    document = json.loads(path.read_text())
    document["keys"].append({**document["keys"][0], "name": "ops", "role": "admin"})
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidArgument, match="'home' and 'ops' have the same id"):
        read_keys(path)


def test_a_file_that_may_not_be_read_any_more_is_refused_before_somebody_starts_anew() -> None:
    """Not only the process that is started next finds out: chmod and chown change neither the file nor its time."""
    with tempfile.TemporaryDirectory() as folder:  # which others may look into, unlike pytest's own
        Path(folder).chmod(0o755)
        path = Path(folder) / "keys.json"
        add_key(path, name="homepage")
        path.chmod(0o644)
        guard = Guard(keys=path)
        with nobody():
            guard.refresh()
            assert guard.refused() == {"API keys": False}
        path.chmod(0o000)
        with nobody():
            guard.refresh()
            assert guard.refused() == {"API keys": True}
            assert [key.name for key in (guard.keys() or {}).values()] == ["homepage"]
        path.chmod(0o644)
        with nobody():
            guard.refresh()
        assert guard.refused() == {"API keys": False}
