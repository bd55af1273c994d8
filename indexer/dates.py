"""Dates as news feeds write them -> aware UTC datetimes.

What is read, in this order: epoch seconds, milli-, micro- or nanoseconds, ISO 8601, day-month-year with a month name
(RFC 2822 and the wires: `3-MAR-1987 12:13:48.90`), and what python-dateutil makes of the rest (`August 22, 2016 12:34
IST`, `Mon Aug 22 12:34:56 +0000 2016`).

A date without a zone is UTC. Names of zones are read as newsrooms mean them: IST is India, BST Britain, CST Chicago,
and ET, CT, MT and PT are standard or summer time, as the date has it. `01/02/2016` and `01-02-2016` are read by the
order that the caller knows (`shown_order` tells what a date shows of it), the month first if it knows none;
`01.02.2016` is the first of February. Digits of every script are read, and marks of direction between them passed over,
as Arabic programs write dates. Of years with two digits, 69 to 99 are of the last century. Nothing is ever
filled in from today's date, and nothing depends on the machine's own time zone: what does not name a year, a month and
a day is not a date.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Literal, TypeAlias
from unicodedata import decimal

from dateutil import parser
from dateutil.zoneinfo import get_zonefile_instance

from coldframe.epoch import EPOCH_NUMBER, FIRST, from_epoch

DateOrder = Literal["dmy", "mdy"]
_Value: TypeAlias = str | int | float | Decimal | datetime | date | None

# Zone names are ambiguous (IST is also Irish and Israeli, CST also Chinese, BST also Bangladeshi): this is the reading
# news use. A name that is not here makes the date unreadable, which is better than a date that is wrong by hours.
_ZONE_HOURS = {
    "Z": 0.0, "UTC": 0.0, "UT": 0.0, "GMT": 0.0, "WET": 0.0,
    "BST": 1.0, "CET": 1.0, "WEST": 1.0, "WAT": 1.0, "CEST": 2.0, "EET": 2.0, "CAT": 2.0, "SAST": 2.0,
    "EEST": 3.0, "MSK": 3.0, "EAT": 3.0, "GST": 4.0, "PKT": 5.0, "IST": 5.5, "NPT": 5.75,
    "ICT": 7.0, "WIB": 7.0, "HKT": 8.0, "SGT": 8.0, "AWST": 8.0, "JST": 9.0, "KST": 9.0,
    "ACST": 9.5, "ACDT": 10.5, "AEST": 10.0, "AEDT": 11.0, "NZST": 12.0, "NZDT": 13.0,
    "BRT": -3.0, "ART": -3.0, "ADT": -3.0, "AST": -4.0, "EDT": -4.0, "EST": -5.0, "CDT": -5.0, "CST": -6.0,
    "MDT": -6.0, "MST": -7.0, "PDT": -7.0, "PST": -8.0, "AKDT": -8.0, "AKST": -9.0, "HST": -10.0,
}  # fmt: skip
_PLACES = {"ET": "America/New_York", "CT": "America/Chicago", "MT": "America/Denver", "PT": "America/Los_Angeles"}
_ZONES = {name: timezone(timedelta(hours=hours)) for name, hours in _ZONE_HOURS.items()}
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip

_ISO_START = re.compile(r"\d{4}(-\d\d-\d\d|\d{4})(?!\d)", re.ASCII)
# What may follow a date: a comment (RFC 2822: `... +0530 (IST)`), control characters of a wire (Reuters: `...&#5;RM`).
_TRAILER = re.compile(r"(\s*\([^()]*\)|&#\d+;.*)$")
# `12:34 GMT+3` is three hours ahead of Greenwich; dateutil reads it the POSIX way, three hours behind.
_GMT_BEFORE_OFFSET = re.compile(r"\b(GMT|UTC|UT)\s*(?=[+-]\d)", re.IGNORECASE)
_DAY_MONTH_YEAR = re.compile(
    r"(?:[a-z]{3,9},?\s+)?(?P<day>\d{1,2})[-\s](?P<month>[a-z]{3,9})[-\s,]\s*(?P<year>\d{4})"
    r"(?:[\sT]\s*(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?"
    r"(?:\s*(?P<zone>[a-z]{1,5}|[+-]\d\d:?\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)
_NUMERIC = re.compile(r"(?<![\d/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d\d)(?!\d)", re.ASCII)
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MAX_CHARS = 100  # no date is longer; dateutil is slow on long nonsense
# Two days that share no year, month or day: where the readings differ, dateutil has filled something in.
_DEFAULTS = (datetime(1972, 1, 1), datetime(1973, 2, 2))


def parse_date(value: _Value, order: DateOrder | None = None) -> datetime | None:
    """Return an aware UTC datetime, or None if `value` is no full date of the years 1000 to 9999. Never raise or warn.

    Numbers, and strings of digits, are time since 1970, up to the year 2100: seconds or milliseconds (9 to 13 digits),
    microseconds (15 or 16), nanoseconds (18 or 19). `order` is of the first two numbers in `01/02/2016`, and a date
    that contradicts it is None; without it the month is first where it can be.
    """
    try:
        found = _read(value, order)
        moment = found and _utc(found)
    except (ValueError, OverflowError):
        return None
    return moment if moment and moment >= FIRST else None


def shown_order(value: object) -> DateOrder | Literal["either"] | None:
    """Tell which order a date such as 22/08/2016 shows; None if it is no such date, or the same in both orders."""
    match = _NUMERIC.search(_plain(value)) if isinstance(value, str) and len(value) <= _MAX_CHARS else None
    if match is None or match[2] == ".":
        return None
    first, second = int(match[1]), int(match[3])
    if first == second or min(first, second) > 12 or max(first, second) > 31:
        return None
    if max(first, second) <= 12:
        return "either"
    return "dmy" if first > 12 else "mdy"


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _read(value: _Value, order: DateOrder | None) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # str(1e18) has no digits to speak of
    return _read_text(_plain(str(value)).strip(), order)


def _plain(text: str) -> str:
    """With the digits of ASCII, which alone tell an order, and without marks of direction."""
    if text.isascii():
        return text
    return "".join(str(decimal(char)) if char.isdecimal() else char for char in _DIRECTION.sub("", text))


def _read_text(text: str, order: DateOrder | None) -> datetime | None:
    if not text or len(text) > _MAX_CHARS:
        return None
    if EPOCH_NUMBER.fullmatch(text):
        return from_epoch(text)
    if text.isdecimal() and len(text) not in (8, 12, 14):  # 20160822 is a date, other numbers are not
        return None
    if _ISO_START.match(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass  # `2016-08-22 12:34 IST` begins like ISO 8601; dateutil reads it
    return _from_day_month_year(text) or _from_anything(_GMT_BEFORE_OFFSET.sub("", _TRAILER.sub("", text)), order)


def _from_day_month_year(text: str) -> datetime | None:
    """Read the commonest forms, 20 times faster than dateutil does; None leaves the text to it."""
    match = _DAY_MONTH_YEAR.fullmatch(text)
    if match is None:
        return None
    month = _month(match["month"].lower())
    zone = _zone(match["zone"])
    if month is None or (match["zone"] and zone is None):
        return None
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    microsecond = int((match["fraction"] or "0")[:6].ljust(6, "0"))
    return datetime(int(match["year"]), month, int(match["day"]), hour, minute, second, microsecond, zone)


def _month(name: str) -> int | None:
    return next((number for number, month in enumerate(_MONTHS, 1) if month.startswith(name)), None)


def _zone(name: str | None) -> tzinfo | None:
    """Find the zone of an abbreviation or of an offset such as -0500 or +05:30."""
    if not name:
        return None
    if name[0] in "+-":
        minutes = int(name[1:3]) * 60 + int(name[-2:])
        return timezone(timedelta(minutes=-minutes if name[0] == "-" else minutes))
    if (place := _PLACES.get(name.upper())) is not None:
        return get_zonefile_instance().get(place)
    return _ZONES.get(name.upper())


def _known_zone(name: str | None, offset_s: int | None) -> tzinfo | None:
    """For dateutil, which would otherwise look a name up in the machine's own time zone, and warn."""
    named = _zone(name)
    zone = named if offset_s is None else timezone(timedelta(seconds=offset_s))
    if (name and zone is None) or (named and zone != named):
        raise ValueError(f"{name} is no known time zone, or not the one that its offset says")
    return zone


class _Words(parser.parserinfo):
    def convertyear(self, year: int, century_specified: bool = False) -> int:
        """As POSIX has it; dateutil goes by the year that it is now."""
        return year if century_specified or year > 99 else year + (1900 if year >= 69 else 2000)


_PARSER = parser.parser(_Words())


def _from_anything(text: str, order: DateOrder | None) -> datetime | None:
    day_first = _day_first(text, order)
    try:
        first, second = (_PARSER.parse(text, default=day, tzinfos=_known_zone, dayfirst=day_first) for day in _DEFAULTS)
    except Exception:  # on odd input dateutil raises nearly anything, and none of it is of use here
        return None
    return first if first == second else None


def _day_first(text: str, order: DateOrder | None) -> bool:
    """How dateutil shall read numbers. Raises ValueError for a date of another order; dateutil would turn it."""
    match = _NUMERIC.search(text)
    if match is None:
        return False  # never True: of 2016-08-22 dateutil would make the 8th of a 22nd month, or the other way round
    by_dots = match[2] == "."
    order = "dmy" if by_dots else order
    shown = "mdy" if by_dots and int(match[3]) > 12 else shown_order(text)
    if order is None:
        return shown == "dmy"
    if shown not in (order, "either", None):
        raise ValueError(f"{text} is not of the order {order}")
    return order == "dmy"
