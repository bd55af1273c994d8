"""Digits -> moments: seconds, milli-, micro- or nanoseconds since 1970, told apart by how many digits there are.

A build reads the dates of a corpus so, and `coldframe upsert` those of its lines.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_OF_EPOCH_S = 4_133_980_800  # 2101-01-01: a larger number of seconds must be milliseconds
# 20160822123400 and 201608221234 are dates: as milliseconds, all that look like the latter would be of 1976.
EPOCH_NUMBER = re.compile(r"(?!(19|20)\d{10}$)(\d{9,13}|\d{15,16}|\d{18,19})(\.\d*)?", re.ASCII)
"""What `from_epoch` reads; digits that do not match stand for no time since 1970."""

FIRST = datetime(1000, 1, 1, tzinfo=UTC)
"""No date before this is read: what a program writes for none is often of the year 1."""


def from_epoch(text: str) -> datetime | None:
    """Return the moment, None if it is after the year 2100."""
    digits, number = len(text.partition(".")[0]), float(text)
    seconds = number / (1e9 if digits > 16 else 1e6 if digits > 13 else 1e3 if number >= _END_OF_EPOCH_S else 1)
    return EPOCH + timedelta(seconds=seconds) if seconds < _END_OF_EPOCH_S else None
