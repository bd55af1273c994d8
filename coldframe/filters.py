"""Conditions on articles, written as one reads them.

    from coldframe import filters

    local = filters.attribute("section").is_in("sport", "city") & filters.published(since=monday)
    client.search("cup final", filter=local & ~filters.cluster("c0007"))

They stand for `coldframe.v1.Filter`, which is their `message`. Exactly what matches is said in ranking.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from coldframe.messages import sending, timestamp
from coldframe.v1.ranking_pb2 import (
    AttributeFilter,
    ClusterFilter,
    DateFilter,
    Filter,
    FilterList,
    NumberRange,
    StringList,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True)
class Condition:
    """A condition on articles. `a & b`: both of them; `a | b`: one at least; `~a`: not this one."""

    message: Filter

    def __and__(self, other: Condition) -> Condition:
        return all_of(*_flat("all_of", self), *_flat("all_of", other))

    def __or__(self, other: Condition) -> Condition:
        return any_of(*_flat("any_of", self), *_flat("any_of", other))

    def __invert__(self) -> Condition:
        if self.message.WhichOneof("condition") == "not":
            return Condition(getattr(self.message, "not"))
        negation = Filter()
        getattr(negation, "not").CopyFrom(self.message)  # a word of Python's
        return Condition(negation)

    def __bool__(self) -> NoReturn:
        raise TypeError("a condition is neither true nor false; combine conditions with &, | and ~, in parentheses")


@dataclass(frozen=True)
class Attribute:
    """One of the articles' attributes, by its key: what a corpus's other columns became."""

    key: str

    def is_in(self, *values: str) -> Condition:
        """Match articles whose attribute is one of these values, exactly."""
        condition = AttributeFilter()
        with sending("values"):
            getattr(condition, "in").CopyFrom(StringList(values=values))  # a word of Python's
        return self._filter(condition)

    def between(self, minimum: float | None = None, maximum: float | None = None) -> Condition:
        """Match articles whose attribute is a number from minimum to maximum, both included; None is an open end."""
        with sending("range"):
            return self._filter(AttributeFilter(range=NumberRange(min=minimum, max=maximum)))

    def exists(self) -> Condition:
        """Match articles that have the attribute, whatever its value."""
        return self._filter(AttributeFilter(exists=True))

    def _filter(self, condition: AttributeFilter) -> Condition:
        with sending("key"):
            condition.key = self.key
        return Condition(Filter(attribute=condition))


def attribute(key: str) -> Attribute:
    """Begin a condition on an attribute."""
    return Attribute(key)


def published(*, since: datetime | None = None, before: datetime | None = None) -> Condition:
    """Match articles with a date, from `since` on and before `before`. Both in a time zone; None is an open end."""
    return Condition(
        Filter(
            published=DateFilter(
                since=None if since is None else timestamp(since, "since"),
                before=None if before is None else timestamp(before, "before"),
            )
        )
    )


def cluster(*ids: str) -> Condition:
    """Match articles in one of these clusters."""
    with sending("ids"):
        return Condition(Filter(cluster=ClusterFilter(ids=ids)))


def all_of(*conditions: Condition) -> Condition:
    """Match articles that every condition matches; with none, every article."""
    return Condition(Filter(all_of=_listed(conditions)))


def any_of(*conditions: Condition) -> Condition:
    """Match articles that at least one condition matches; with none, no article."""
    return Condition(Filter(any_of=_listed(conditions)))


def _listed(conditions: Iterable[Condition]) -> FilterList:
    return FilterList(filters=[condition.message for condition in conditions])


def _flat(kind: str, condition: Condition) -> list[Condition]:
    """Return the parts of `a & b` where `& c` follows: a server takes conditions 8 deep at most."""
    if condition.message.WhichOneof("condition") != kind:
        return [condition]
    return [Condition(part) for part in getattr(condition.message, kind).filters]
