from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.dates import DateOrder, parse_date, shown_order

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = datetime(2016, 8, 22, tzinfo=UTC)
NOON_IN_INDIA = datetime(2016, 8, 22, 7, 4, tzinfo=UTC)

ARABIC, FULL_WIDTH = (dict(zip(range(0x30, 0x3A), range(zero, zero + 10), strict=True)) for zero in (0x660, 0xFF10))
READ: list[tuple[Any, datetime]] = [
    # ISO 8601
    ("2016-08-22", DAY),
    ("20160822", DAY),
    ("2016-08-22T07:04Z", NOON_IN_INDIA),
    ("2016-08-22T12:34:00+05:30", NOON_IN_INDIA),
    ("2016-08-22 12:34:00 +0530", NOON_IN_INDIA),
    ("2016-08-22 07:04:00", NOON_IN_INDIA),
    ("2016-08-22 07:04:00 UTC", NOON_IN_INDIA),
    ("2016-08-22T07:04:00.123456789Z", NOON_IN_INDIA.replace(microsecond=123456)),
    ("20160822070400", NOON_IN_INDIA),
    # what this system was first made for, and the wires
    ("August 22, 2016 12:34 IST", NOON_IN_INDIA),
    ("  3-MAR-1987 12:13:48.90 ", datetime(1987, 3, 3, 12, 13, 48, 900_000, UTC)),
    ("27-MAR-1987 10:20:30.33&#5;&#5;&#5;A RM", datetime(1987, 3, 27, 10, 20, 30, 330_000, UTC)),
    # RFC 2822
    ("Mon, 22 Aug 2016 12:34:00 +0530", NOON_IN_INDIA),
    ("Mon, 22 Aug 2016 12:34:00 +0530 (IST)", NOON_IN_INDIA),
    ("Mon, 22 Aug 2016 03:04:00 EDT", NOON_IN_INDIA),
    ("22 Aug 2016 07:04 GMT", NOON_IN_INDIA),
    # people
    ("22 August 2016", DAY),
    ("5 Sept 2016", datetime(2016, 9, 5, tzinfo=UTC)),
    ("Aug. 22, 2016, 3:04 a.m. EDT", NOON_IN_INDIA),
    ("22 Aug 2016 12:34 PM", DAY + timedelta(hours=12, minutes=34)),
    ("22nd August 2016", DAY),
    ("8/22/2016", DAY),
    ("1/2/2016", datetime(2016, 1, 2, tzinfo=UTC)),
    ("Mon Aug 22 2016 12:34:00 GMT+0530 (IST)", NOON_IN_INDIA),
    ("Aug 22 2016 12:34 GMT+5:30", NOON_IN_INDIA),
    ("Mon Aug 22 07:04:00 +0000 2016", NOON_IN_INDIA),
    ("Monday, August 22, 2016 at 3:04 a.m. ET", NOON_IN_INDIA),
    ("August 22, 2016 00:04 PT", NOON_IN_INDIA),
    ("January 22, 2016 02:04 ET", datetime(2016, 1, 22, 7, 4, tzinfo=UTC)),
    ("2016/08/22", DAY),
    ("2016/08/22 07:04", NOON_IN_INDIA),
    ("22/08/2016", DAY),
    ("22-08-2016 07:04", NOON_IN_INDIA),
    ("01.02.2016", datetime(2016, 2, 1, tzinfo=UTC)),
    # digits of other scripts, and marks of direction, as Arabic programs write them
    ("01.02.2016".translate(ARABIC), datetime(2016, 2, 1, tzinfo=UTC)),
    ("22\u200f/8\u200f/2016 7:04".translate(ARABIC), NOON_IN_INDIA),
    ("\u200e22\u200e/08\u200e/2016", DAY),
    ("2016/08/22".translate(FULL_WIDTH), DAY),
    # years of two digits, whatever the year is now
    ("22-Aug-16", DAY),
    ("Mon, 22 Aug 16 07:04:00 GMT", NOON_IN_INDIA),
    ("3-MAR-87", datetime(1987, 3, 3, tzinfo=UTC)),
    ("8/22/16", DAY),
    ("1-JAN-69", datetime(1969, 1, 1, tzinfo=UTC)),
    ("1-JAN-68", datetime(2068, 1, 1, tzinfo=UTC)),
    # epochs
    ("1471849440123456", NOON_IN_INDIA.replace(microsecond=123456)),
    (1471849440123456, NOON_IN_INDIA.replace(microsecond=123456)),
    (1471849440000000000, NOON_IN_INDIA),
    (1471849440000000000.0, NOON_IN_INDIA),
    ("201608220704", NOON_IN_INDIA),
    (1471849440, NOON_IN_INDIA),
    (1471849440.0, NOON_IN_INDIA),
    ("1471849440", NOON_IN_INDIA),
    ("1471849440000", NOON_IN_INDIA),
    (1471849440000, NOON_IN_INDIA),
    (Decimal("1471849440.123456"), NOON_IN_INDIA.replace(microsecond=123456)),
    (4102444799, datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)),
    # Python's own
    (date(2016, 8, 22), DAY),
    (datetime(2016, 8, 22), DAY),
    (datetime(2016, 8, 22, 12, 34, tzinfo=timezone(timedelta(hours=5.5))), NOON_IN_INDIA),
    ("1000-01-01", datetime(1000, 1, 1, tzinfo=UTC)),
]

ZONES = [
    ("EST", -5), ("EDT", -4), ("CST", -6), ("CDT", -5), ("MST", -7), ("MDT", -6), ("PST", -8), ("PDT", -7),
    ("GMT", 0), ("UTC", 0), ("BST", 1), ("CET", 1), ("CEST", 2), ("IST", 5.5), ("JST", 9), ("AEST", 10),
]  # fmt: skip

UNREADABLE: list[Any] = [
    None, "", "   ", "n/a", "yesterday", "2016", "August 2016", "Aug 22", "Monday", "12:34", "10", "0", "-5", 7, True,
    "2016-W34", "2016-13-40", "31-FEB-2016", "22 Foo 2016", "31-MAR-1987 605:12:19.12", "0999-12-31", "99999-01-01",
    "August 22, 2016 12:34 QQQ", "22 Aug 2016 12:34 QQQ", "0001-01-01T00:00+05:00", "9999-12-31T23:00-05:00",
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))), float("nan"), float("inf"), "nan", "1e400", "9" * 30,
    "01.22.2016", "13/25/2016", "12.34.56", "2016/22/08", "201613221234", 10**16,
    10**400, "2016-08-22 " * 1000,
]  # fmt: skip


@pytest.fixture
def machine_in_new_zealand(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "QQQ-12")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("value", "moment"), READ)
def test_a_date_is_read_as_utc(value: Any, moment: datetime) -> None:
    found = parse_date(value)
    assert found == moment
    assert found is not None
    assert found.tzinfo is UTC


@pytest.mark.parametrize(("zone", "hours"), ZONES)
@pytest.mark.parametrize("form", ["August 22, 2016 12:00 {}", "22 Aug 2016 12:00 {}", "2016-08-22 12:00:00 {}"])
def test_zone_names_mean_what_news_means_by_them(form: str, zone: str, hours: float) -> None:
    assert parse_date(form.format(zone)) == DAY + timedelta(hours=12 - hours)


@pytest.mark.parametrize("value", UNREADABLE)
def test_what_is_no_full_date_is_none(value: Any) -> None:
    assert parse_date(value) is None


@pytest.mark.usefixtures("machine_in_new_zealand")
def test_the_machines_own_zone_plays_no_part() -> None:
    assert parse_date("August 22, 2016 12:34") == DAY + timedelta(hours=12, minutes=34)
    assert parse_date("August 22, 2016 12:34 QQQ") is None


@given(st.text(max_size=30) | st.integers() | st.floats())
def test_nothing_raises(value: str | float) -> None:
    found = parse_date(value)
    assert found is None or 1000 <= found.year <= 9999


@given(st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_iso_dates_come_back_exactly(moment: datetime) -> None:
    assert parse_date(moment.isoformat()) == moment


@pytest.mark.parametrize(
    ("text", "shown", "day_first", "month_first"),
    [
        ("22/08/2016", "dmy", DAY, None),
        ("Monday, 22-08-2016 07:04", "dmy", NOON_IN_INDIA, None),
        ("08/22/2016", "mdy", None, DAY),
        ("08/22/16 3:04 AM EDT", "mdy", None, NOON_IN_INDIA),
        ("01/02/2016", "either", datetime(2016, 2, 1, tzinfo=UTC), datetime(2016, 1, 2, tzinfo=UTC)),
        ("02/02/2016", None, datetime(2016, 2, 2, tzinfo=UTC), datetime(2016, 2, 2, tzinfo=UTC)),
        ("22/08/2016".translate(ARABIC), "dmy", DAY, None),
        ("01/02/2016".translate(ARABIC), "either", datetime(2016, 2, 1, tzinfo=UTC), datetime(2016, 1, 2, tzinfo=UTC)),
        ("01.02.2016", None, datetime(2016, 2, 1, tzinfo=UTC), datetime(2016, 2, 1, tzinfo=UTC)),
        ("2016-08-22", None, DAY, DAY),
        ("2016-08-22 12:34 IST", None, NOON_IN_INDIA, NOON_IN_INDIA),
        ("22 Aug 2016", None, DAY, DAY),
        (1471849440, None, NOON_IN_INDIA, NOON_IN_INDIA),
        ("50/60/2016", None, None, None),
    ],
)
def test_the_order_of_numbers(text: Any, shown: str | None, day_first: Any, month_first: Any) -> None:
    assert shown_order(text) == shown
    assert (parse_date(text, "dmy"), parse_date(text, "mdy")) == (day_first, month_first)


@given(st.dates(date(1970, 1, 1), date(2068, 12, 31)), st.sampled_from("/-"), st.sampled_from(["dmy", "mdy"]))
def test_a_date_written_in_an_order_is_read_in_that_order(day: date, mark: str, order: DateOrder) -> None:
    numbers = (day.day, day.month) if order == "dmy" else (day.month, day.day)
    text = f"{numbers[0]:02}{mark}{numbers[1]:02}{mark}{day.year}"
    assert parse_date(text, order) == datetime(day.year, day.month, day.day, tzinfo=UTC)
    assert shown_order(text) in (order, "either", None)
