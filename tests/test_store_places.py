"""A store where people put it: moved away below a server, on another disk, in a folder with a strange name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coldframe.errors import FailedPrecondition
from coldframe.live import LIVE
from tests.newsroom import opened, piece

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Background

GONE = "names no generation any more"


@pytest.mark.parametrize("empty_folder", [False, True], ids=["moved", "unmounted"])
def test_no_article_is_taken_where_the_store_was(
    background: Background, own_newsroom: Path, tmp_path: Path, empty_folder: bool
) -> None:
    """Who puts the store back puts it over the file that was begun in its place."""
    with opened(background, own_newsroom) as (client, _):
        own_newsroom.rename(tmp_path / "aside")
        if empty_folder:
            own_newsroom.mkdir()
        with pytest.raises(FailedPrecondition, match="cannot write in its store, and its log says why"):
            client.upsert([piece("a")])
        with pytest.raises(FailedPrecondition, match="cannot write in its store, and its log says why"):
            client.delete(["001"])
        assert client.search(article_id="001").hits, "searches go on"
        if empty_folder:
            own_newsroom.rmdir()  # where anything lies in it, this fails
        (tmp_path / "aside").rename(own_newsroom)
        client.upsert([piece("a")])
    assert (own_newsroom / LIVE).exists()
    with opened(background, own_newsroom) as (client, _):
        assert client.get_article("a").article.id == "a"


def test_a_store_that_is_gone_is_said_in_the_log_once_each_time(
    background: Background, own_newsroom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(background, own_newsroom) as (_, engine):
        for times in (1, 2):
            own_newsroom.rename(tmp_path / "aside")
            for _ in range(3):
                background.run(engine.exchange._look())
            assert caplog.text.count(GONE) == times
            (tmp_path / "aside").rename(own_newsroom)
            background.run(engine.exchange._look())
        assert engine.ready
