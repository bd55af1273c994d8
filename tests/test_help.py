"""--help is the manual: on a terminal of 80 columns it is whole, and its sentences run on."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import typer

from coldframe import commands, settings
from indexer.__main__ import app as indexer
from server.__main__ import app as server

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = {
    "python -m indexer": (indexer, "COLDFRAME_INDEXER"),
    "python -m server": (server, "COLDFRAME_SERVER"),
    "coldframe": (commands.app, "COLDFRAME"),
}


def every_command() -> Iterator[tuple[str, ...]]:
    for prog, (app, _) in PROGRAMS.items():
        yield from ((prog, *words) for words in _below(typer.main.get_command(app)))


def _below(command: Any) -> Iterator[tuple[str, ...]]:
    yield ()
    for name, inner in getattr(command, "commands", {}).items():
        yield from ((name, *words) for words in _below(inner))


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_help_is_whole_on_80_columns(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    prog, *rest = words
    app, prefix = PROGRAMS[prog]
    with pytest.raises(SystemExit) as ended:
        settings.run(app, prog=prog, prefix=prefix, args=[*rest, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "…" not in out
    lines = [line.strip() for line in out.split("╭")[0].splitlines()]
    for line, following in pairwise(lines):
        first = re.split(r"\s", following)[0]
        assert not (line and first) or len(line) + 1 + len(first) > 78, f"{line!r} ends too early"
