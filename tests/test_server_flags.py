"""Whom the command line asks, as whom, and how long it waits: each flag on a real connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from coldframe import commands
from coldframe.errors import ColdframeError, DeadlineExceeded, InvalidArgument, Unauthenticated, Unavailable
from tests.guarded import guarded
from tests.scripted import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Background
    from tests.guarded import Guarded


@pytest.fixture
def mutual(background: Background, newsroom: Path, tmp_path: Path) -> Iterator[Guarded]:
    with guarded(background, newsroom, tmp_path / "secrets", tls=True, client_ca=True) as running:
        yield running


def ask(*args: object) -> str:
    done = CliRunner().invoke(commands.app, [str(arg) for arg in args])
    if isinstance(done.exception, ColdframeError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_certificate_of_ones_own_and_a_key_are_shown(mutual: Guarded) -> None:
    files = mutual.files
    assert files is not None
    certificate, key = files.client("desk")
    whole = {
        "--server": mutual.target,
        "--tls-ca": files.ca,
        "--tls-cert": certificate,
        "--tls-key": key,
        "--tls-server-name": "localhost",
        "--api-key": mutual.key(),
    }

    def info(**others: object) -> str:
        given = whole | {f"--{name.replace('_', '-')}": value for name, value in others.items()}
        flags = [part for name, value in given.items() if value is not None for part in (name, value)]
        return ask("info", "--json", "--timeout", 20, *flags)

    assert json.loads(info())["index"]["article_count"] == 120
    with pytest.raises(Unavailable, match="is for another name"):
        info(tls_server_name="elsewhere")
    with pytest.raises(Unavailable):
        info(tls_cert=None, tls_key=None)
    with pytest.raises(Unauthenticated):
        info(api_key=None)


def test_who_waits_for_so_long_waits_no_longer() -> None:
    with Server() as server:
        server.stalled = True
        with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            ask("info", "--server", server.target, "--timeout", 0.2)


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan"])
def test_a_time_that_is_none_is_refused_by_its_flag(seconds: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^--timeout is {seconds}; give seconds above 0") as refused:
        ask("info", "--timeout", seconds)
    assert refused.value.field == "--timeout"


def test_a_key_goes_to_another_machine_in_plain_text_only_where_that_is_said() -> None:
    flags = ["--server", "192.0.2.1:1", "--api-key", "cf_key", "--timeout", 0.2]
    with pytest.raises(InvalidArgument, match="in plain text"):
        ask("info", *flags)
    with pytest.raises((Unavailable, DeadlineExceeded)):
        ask("info", *flags, "--insecure")
