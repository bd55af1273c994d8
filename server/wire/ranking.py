"""`Ranking` on the wire: how answers are chosen and put in order, checked and made ready for one served index."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument
from coldframe.v1 import types_pb2
from server import filters
from server.ranking import Options
from server.search import Ask
from server.wire import requests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coldframe.v1 import ranking_pb2
    from server.pages import Place
    from server.serving import Served

MAX_EXCLUDED = 10_000
MAX_PRIORS = 10_000
_FAST_RECALL = 0.9
_MINUTE_S = 60
_F = "ranking"
_EFFORTS = {number: name for name, number in types_pb2.Effort.items()}


def ask(message: ranking_pb2.Ranking, served: Served, limit: int, place: Place, effort: int = 0) -> Ask:
    """Raises InvalidArgument for whatever is not allowed; `effort` is the request's own."""
    moment = place.moment or _minute()
    if not (effort or message.ByteSize()):
        return _usual(limit, served.generation.probes, served.generation.margin, moment, place)
    condition = None
    if message.HasField("filter"):
        condition = filters.compile(message.filter, served.generation.numbers, f"{_F}.filter")
    weight = requests.within(requests.optional(message, "popularity_weight"), 0.0, 2.0, 0.1, f"{_F}.popularity_weight")
    probes, margin = _reach(message, served, effort)
    return Ask(
        limit=limit,
        options=_options(message, moment),
        condition=condition,
        excluded=requests.identifiers(message.exclude_ids, MAX_EXCLUDED, f"{_F}.exclude_ids", least=0),
        priors=_priors(message),
        popularity=(_key(message.popularity_attribute), weight) if message.popularity_attribute else None,
        probes=probes,
        margin=margin,
        place=place,
    )


def _minute() -> int:
    """Now, to the minute, so that equal calls have equal answers."""
    return int(time.time() // _MINUTE_S * _MINUTE_S)


@lru_cache(maxsize=16)
def _usual(limit: int, probes: int, margin: float | None, moment: int, place: Place) -> Ask:
    """What is asked for where nothing is said."""
    return Ask(limit, Options(as_of_s=moment), probes, margin, place=place)


def _options(message: ranking_pb2.Ranking, moment: int) -> Options:
    half_life, as_of = None, float(moment)
    if message.HasField("half_life"):
        half_life = requests.seconds(message.half_life, f"{_F}.half_life", 1.0)
    if message.HasField("as_of"):
        as_of = requests.moment(message.as_of, f"{_F}.as_of").timestamp()
    least = requests.optional(message, "min_score")
    if least is not None and math.isnan(least):
        raise InvalidArgument(f"{_F}.min_score is no number; give a score such as 0.3", field=f"{_F}.min_score")
    return Options(
        max_per_story=_cap(message, "max_per_story", 1),
        max_per_cluster=_cap(message, "max_per_cluster", 0),
        diversity=requests.within(message.diversity, 0.0, 1.0, 0.0, f"{_F}.diversity"),
        half_life_s=half_life,
        recency_weight=requests.within(
            requests.optional(message, "recency_weight"), 0.0, 2.0, 0.2, f"{_F}.recency_weight"
        ),
        as_of_s=as_of,
        explore_fraction=requests.within(message.explore_fraction, 0.0, 1.0, 0.0, f"{_F}.explore_fraction"),
        explore_seed=message.explore_seed,
        min_score=least,
    )


def _cap(message: ranking_pb2.Ranking, name: str, default: int) -> int:
    return int(requests.within(requests.optional(message, name), 0, 1_000, default, f"{_F}.{name}"))


def _key(value: str) -> str:
    if len(value) > filters.MAX_KEY_CHARS:
        raise InvalidArgument(
            f"{_F}.popularity_attribute has {len(value):,} characters; at most {filters.MAX_KEY_CHARS} are allowed",
            field=f"{_F}.popularity_attribute",
        )
    return value


def _priors(message: ranking_pb2.Ranking) -> Mapping[str, float]:
    field = f"{_F}.priors"
    if len(message.priors) > MAX_PRIORS:
        raise InvalidArgument(
            f"{field} has {len(message.priors):,} entries; at most {MAX_PRIORS:,} are allowed", field=field
        )
    for article_id, prior in message.priors.items():
        if not -2.0 <= prior <= 2.0:
            raise InvalidArgument(
                f"{field}[{article_id[: requests.MAX_ID_CHARS]!r}] is {prior:g}; allowed are -2 to 2", field=field
            )
    return dict(message.priors)


def _reach(message: ranking_pb2.Ranking, served: Served, effort: int) -> tuple[int, float | None]:
    """How many lists are visited, and by which margin."""
    for field, value in (("effort", effort), (f"{_F}.effort", message.effort)):
        if value not in _EFFORTS:
            raise InvalidArgument(f"{field} is {value}; allowed are {', '.join(_EFFORTS.values())}", field=field)
    given = [value for value in (effort, message.effort) if value] + [1] * message.HasField("target_recall")
    if len(given) > 1:
        raise InvalidArgument(
            f"effort, {_F}.effort and {_F}.target_recall say the same in three ways; give one of them",
            field=f"{_F}.effort",
        )
    clusters = served.generation.index.clusters
    if message.HasField("target_recall"):
        recall = message.target_recall
        if not 0.0 < recall <= 1.0:
            raise InvalidArgument(
                f"{_F}.target_recall is {recall:g}; it is a share, above 0 and at most 1", field=f"{_F}.target_recall"
            )
        return _probes_for(served, recall) if recall < 1.0 else clusters, None
    level = effort or message.effort
    if level == types_pb2.EFFORT_EXACT:
        return clusters, None
    if level == types_pb2.EFFORT_FAST:
        return _probes_for(served, _FAST_RECALL), None
    return served.generation.probes, served.generation.margin


def _probes_for(served: Served, recall: float) -> int:
    """The fewest lists that reached a recall when the build measured it; all where none did."""
    curve = served.generation.manifest.report["recall_by_probes"]
    reached = [int(probes) for probes, found, _ in curve if found >= recall]
    return min(reached, default=served.generation.index.clusters)
