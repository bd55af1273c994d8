"""Articles that are withdrawn more than once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from coldframe.live import LIVE, LiveStore
from tests.newsroom import opened

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.conftest import Background


def test_one_that_is_said_again_later_is_of_that_moment(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus of the time between, or a build that read it, would else bring the article back."""
    monkeypatch.setattr("server.writer._AGAIN", timedelta(0))
    with opened(background, own_newsroom) as (client, _):
        assert client.delete(["005"]).deleted_ids == ["005"]
        exported = datetime.now(UTC)
        assert client.delete(["005"]).missing_ids == ["005"]
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        (entry,) = live.since(1)
        assert entry.id == "005"
        assert entry.article is None
        assert entry.changed_at >= exported
