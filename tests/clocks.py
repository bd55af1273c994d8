"""Clocks that are wrong."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from datetime import timedelta, tzinfo


def ahead(by: timedelta) -> type[datetime]:
    """A `datetime` whose `now` is so much later than it is."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + by

    return Ahead
