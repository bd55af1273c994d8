"""What a guarded server tells of writes and administration, and what it never tells."""

from __future__ import annotations

import json
import logging
import os
import shutil
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from coldframe.errors import InvalidArgument, Overloaded, PermissionDenied, Unauthenticated, UnknownGeneration
from server.admission import Call, SearchLine
from server.security import audit
from tests.disks import files_of_at_most
from tests.guarded import guarded
from tests.newsroom import piece, words
from tests.test_security import endless
from tests.test_server_process import dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Background
    from tests.guarded import Guarded


@pytest.fixture(scope="module")
def server(background: Background, newsroom: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("audited")
    store = shutil.copytree(newsroom, folder / "store")
    with guarded(background, store, folder / "secrets") as running:
        yield running


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "coldframe.audit"]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of an audit log, which is in nobody's way afterwards."""
    (tmp_path / "audit").mkdir()
    yield tmp_path / "audit" / "audit.jsonl"
    logger = logging.getLogger(audit.LOGGER)
    for handler in [*logger.handlers]:
        if isinstance(handler, WatchedFileHandler):
            logger.removeHandler(handler)
            handler.close()
    logger.propagate = True


def test_a_file_that_is_named_twice_has_each_line_once(path: Path) -> None:
    for _ in range(2):
        audit.to_file(path)
    audit.note(Call("/a.B/C", "call", audited=True))
    assert path.read_text().count("\n") == 1


def test_calls_are_answered_where_the_audit_log_cannot_be_written_and_their_lines_stand_in_the_log(
    server: Guarded, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit.to_file(path)
    path.parent.rename(path.parent.with_name("away"))
    reader, writer = server.key(), server.key("write", name="ingest")
    with server.client(writer) as client:
        client.delete(["none"])
        assert len([*client.stream_upsert([piece("kept")])]) == 1
    with server.client(reader) as client, pytest.raises(PermissionDenied):
        client.delete(["kept"])
    wait_until(lambda: len(lines(caplog)) == 4)
    assert caplog.text.count("the audit log cannot be written") == 1
    path.parent.mkdir()
    with server.client(writer) as client:
        client.delete(["kept"])
    wait_until(path.exists)
    wait_until(lambda: path.read_text().count("\n") == 1)
    assert len(lines(caplog)) == 4


def written(path: Path) -> list[str]:
    return [json.loads(line)["method"] for line in path.read_text().splitlines() if line.endswith("}")]


def test_a_file_that_filled_its_disk_is_let_go_when_it_is_moved_away(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit.to_file(path)
    audit.note(Call("/a.B/First", "call", audited=True))
    with files_of_at_most(path.stat().st_size + 100):
        for _ in range(50):  # more than a buffer holds
            audit.note(Call("/a.B/Lost", "call", audited=True))
        path.rename(path.with_suffix(".1"))
        audit.note(Call("/a.B/Anew", "call", audited=True))
        opened = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        assert not [name for name in opened if name.startswith(str(path.with_suffix(".1")))]
    assert written(path) == ["/a.B/Anew"]
    assert written(path.with_suffix(".1")) == ["/a.B/First"]
    assert [line["method"] for line in lines(caplog)] == 50 * ["/a.B/Lost"]


def test_a_line_of_which_the_disk_took_a_part_damages_no_other(path: Path) -> None:
    audit.to_file(path)
    audit.note(Call("/a.B/First", "call", audited=True))
    with files_of_at_most(path.stat().st_size + 100):
        audit.note(Call("/a.B/Lost", "call", audited=True))
    for _ in range(2):
        audit.note(Call("/a.B/Last", "call", audited=True))
    assert written(path) == ["/a.B/First", "/a.B/Last", "/a.B/Last"]
    assert path.read_text().count("\n") == 4


def test_every_write_and_every_administrative_call_leaves_a_line(
    server: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="coldframe.audit")
    reader, writer, admin = server.key(), server.key("write", name="ingest"), server.key("admin", name="ops")
    with server.client(writer) as client:
        client.upsert([piece("n1"), piece("n2")])
        client.delete(["n1", "n2", "n3"])
        wait_until(lambda: len(lines(caplog)) == 2)
        [*client.stream_upsert([piece("n4"), piece("n5"), piece("n6")], group=2)]
        wait_until(lambda: len(lines(caplog)) == 4)
        client.search(words("x"))
        with pytest.raises(InvalidArgument):
            client.upsert([piece("")])
        wait_until(lambda: len(lines(caplog)) == 5)
    with server.client(reader) as client, pytest.raises(PermissionDenied):
        client.delete(["001"])
    with server.client(admin) as client, pytest.raises(UnknownGeneration):
        client.activate("no-such")
    wait_until(lambda: len(lines(caplog)) == 7)
    told = [
        (line["who"], line["method"].rpartition("/")[2], line["event"], line["items"], line["outcome"])
        for line in lines(caplog)
    ]
    assert told == [
        ("ingest", "UpsertArticles", "end", 2, "OK"),
        ("ingest", "DeleteArticles", "end", 3, "OK"),
        ("ingest", "StreamUpsertArticles", "begin", 0, ""),
        ("ingest", "StreamUpsertArticles", "end", 3, "OK"),
        ("ingest", "UpsertArticles", "end", 1, "INVALID_ARGUMENT"),
        ("the-reader", "DeleteArticles", "end", 0, "PERMISSION_DENIED"),
        ("ops", "ActivateGeneration", "end", 0, "NOT_FOUND"),
    ]
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in lines(caplog))
    assert all(line["key"] and line["role"] and line["ms"] >= 0 for line in lines(caplog))


def test_a_write_whose_caller_goes_and_one_of_no_sense_are_audited_too(
    server: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="coldframe.audit")
    metadata = [("authorization", f"Bearer {server.key('write')}")]
    with dial(server.target) as channel:
        call: Any = channel.stream_unary("/coldframe.v1.ArticleService/UpsertArticles")
        going = call.future(endless(), metadata=metadata)
        wait_until(lambda: server.guard.gate.open == 1)
        going.cancel()
        wait_until(lambda: len(lines(caplog)) == 1)
        upsert: Any = channel.unary_unary("/coldframe.v1.ArticleService/UpsertArticles")
        with pytest.raises(grpc.RpcError) as raised:
            upsert(b"\xff\xff", metadata=metadata)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        wait_until(lambda: len(lines(caplog)) == 2)
    assert [line["outcome"] for line in lines(caplog)] == ["CANCELLED", "INVALID_ARGUMENT"]


def test_a_call_that_finds_the_line_full_leaves_one_line(
    server: Guarded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="coldframe.audit")
    key = server.key("write")
    monkeypatch.setattr(SearchLine, "full", True)
    with server.client(key) as client, pytest.raises(Overloaded):
        client.upsert([piece("late")])
    wait_until(lambda: bool(lines(caplog)))
    assert [(line["event"], line["outcome"]) for line in lines(caplog)] == [("end", "RESOURCE_EXHAUSTED")]


def test_who_has_no_good_key_leaves_no_line_for_each_call(server: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        with server.client("cfk_" + 16 * "1" + "_" + 64 * "2") as client, pytest.raises(Unauthenticated):
            client.delete(["001"])
    with server.client(server.key("write")) as client:
        client.delete(["none"])
    wait_until(lambda: bool(lines(caplog)))
    assert [line["outcome"] for line in lines(caplog)] == ["OK"]


def test_no_log_holds_a_key_and_strangers_do_not_fill_it(server: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    writer, wrong = server.key("write"), "cfk_" + 16 * "1" + "_" + 64 * "2"
    with server.client(writer) as client:
        client.upsert([piece("logged")])
    server.guard.gate._strangers._told_at = 0.0
    with server.client(wrong) as client:
        for _ in range(50):
            with pytest.raises(Unauthenticated):
                client.index()
    strangers = [record for record in caplog.records if "no good key" in record.getMessage()]
    assert len(strangers) == 1
    for token in (writer, wrong):
        assert token not in caplog.text
        assert token.rpartition("_")[2] not in caplog.text
