"""What the scripted server answers from: six articles and those it is sent, ranked the slow obvious way."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from google.protobuf.field_mask_pb2 import FieldMask

from coldframe.errors import InvalidArgument, UnknownArticle, UnknownCluster
from coldframe.v1.types_pb2 import Article, ArticleSummary, Cluster, Explanation, Hit, Seed, Term, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coldframe.v1.ranking_pb2 import AttributeFilter, Filter, Ranking
    from coldframe.v1.search_service_pb2 import WeightedSeed

MAX_TOKENS = 4096
WORDS = ("economy", "sport", "storm")
NOW = datetime(2026, 3, 14, tzinfo=UTC)

# Title, date, cluster, and the counts of "economy", "sport" and "storm" that stand for a vector.
ARTICLES: dict[str, tuple[str, str, str, tuple[float, float, float]]] = {
    "a1": ("Central bank expected to cut rates", "2026-03-01", "c0", (1.0, 0.0, 0.0)),
    "a2": ("Exporters brace for a weaker currency as rate cut looms and factories count their orders in the valley "
           "towns", "2026-03-02", "c0", (0.9, 0.1, 0.0)),
    "a3": ("[bold]Cup final[/bold] decided\x1b[31m by a late goal", "2026-02-27", "c1", (0.0, 1.0, 0.0)),
    "a4": ("Goalkeeper signs for three more years", "2026-02-28", "c1", (0.1, 0.9, 0.0)),
    "a5": ("Unwetter über der Küste: Fähren bleiben im Hafen", "", "c2", (0.0, 0.0, 1.0)),
    "a6": ("https-style-identifier-follows", "2026-01-15", "c2", (0.0, 0.3, 0.7)),
}  # fmt: skip
LABELS = {"c0": "rates, bank, inflation", "c1": "goal, cup, keeper", "c2": "storm, ferry, coast"}
CENTROIDS = {"c0": (1.0, 0.0, 0.0), "c1": (0.0, 1.0, 0.0), "c2": (0.0, 0.0, 1.0)}
SECTIONS = {"c0": "economy", "c1": "sport", "c2": "weather"}


@dataclass
class Entry:
    """One article, known from the start or sent since."""

    title: str
    content: str
    published_at: datetime | None
    cluster: str
    vector: tuple[float, float, float]
    attributes: dict[str, str]
    live: bool = False


@dataclass
class Seeker:
    """A seed's vector, what is not to be answered because of it, and its weight."""

    vector: Sequence[float]
    own: set[str]
    weight: float = 1.0
    number: int = 0


@dataclass
class Index:
    """The articles at this moment."""

    sent: dict[str, Article] = field(default_factory=dict)
    live: dict[str, Entry] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    sequence: int = 0

    def entries(self) -> dict[str, Entry]:
        base = {key: entry_of(key) for key in ARTICLES if key not in self.removed}
        return base | self.live

    def upsert(self, article: Article) -> None:
        self.sent[article.id], self.live[article.id] = article, entry_of_article(article)
        self.sequence += 1

    def delete(self, article_id: str) -> None:
        self.sent.pop(article_id, None)
        self.live.pop(article_id, None)
        self.removed.add(article_id)
        self.sequence += 1

    def seeker(self, seed: Seed) -> Seeker:
        """Raises UnknownArticle and UnknownCluster."""
        kind, entries = seed.WhichOneof("seed"), self.entries()
        if kind == "article_id":
            if seed.article_id not in entries:
                raise UnknownArticle(f"no article has the id '{seed.article_id}'.")
            return Seeker(entries[seed.article_id].vector, {seed.article_id})
        if kind == "cluster_id":
            return Seeker(CENTROIDS[known_cluster(seed.cluster_id)], set())
        if kind == "vector":
            packed = seed.vector.packed
            return Seeker(struct.unpack("<3f", packed) if packed else seed.vector.values, set())
        return Seeker(vector_of(text_of(seed)), {seed.article.id} - {""})

    def rank(self, seeker: Seeker, ranking: Ranking, unlike: Sequence[Seeker] = ()) -> list[Hit]:
        """All that may be answered, the best first, each with its explanation."""
        hidden = {*ranking.exclude_ids, *seeker.own}
        hits = [
            self._hit(key, entry, seeker, ranking, unlike)
            for key, entry in self.entries().items()
            if key not in hidden and matches(ranking.filter, entry)
        ]
        best = sorted(hits, key=lambda hit: (-hit.score, hit.article.id))
        if ranking.HasField("min_score"):
            best = [hit for hit in best if hit.score >= ranking.min_score]
        return limited_per_cluster(diversified(best, ranking.diversity, self.entries()), ranking.max_per_cluster)

    def _hit(self, key: str, entry: Entry, seeker: Seeker, ranking: Ranking, unlike: Sequence[Seeker]) -> Hit:
        fresh = freshness(entry.published_at, ranking)
        why = Explanation(
            similarity=dot(seeker.vector, entry.vector),
            negative=min((other.weight * max(0, dot(other.vector, entry.vector)) for other in unlike), default=0.0),
            recency=(fresh - 1) * (ranking.recency_weight or 0.2),
            prior=ranking.priors.get(key, 0.0),
            freshness=fresh,
            seed=seeker.number,
            cluster_id=entry.cluster,
            cluster_label=LABELS[entry.cluster],
        )
        return Hit(article=summary_of(key, entry), score=total(why), explanation=why)

    def summary(self, key: str) -> ArticleSummary:
        return summary_of(key, self.entries()[key])

    def cluster(self, cluster_id: str) -> Cluster:
        members = self.members(known_cluster(cluster_id))
        label = LABELS[cluster_id]
        terms = [Term(term=term, weight=1 / rank) for rank, term in enumerate(label.split(", "), 1)]
        found = Cluster(id=cluster_id, label=label, terms=terms, size=len(members))
        if members:
            found.medoid.CopyFrom(self.summary(members[0]))
        entries = self.entries()
        dates = [entries[key].published_at for key in members]
        newest = max((date for date in dates if date), default=None)
        if newest:
            found.newest_at.FromDatetime(newest)
        found.live_count = sum(entries[key].live for key in members)
        return found

    def members(self, cluster_id: str) -> list[str]:
        return [key for key, entry in self.entries().items() if entry.cluster == cluster_id]

    def missing(self, ranking: Ranking, seeds: Sequence[WeightedSeed] = ()) -> list[str]:
        """Ids that a request names and nothing has."""
        entries = self.entries()
        named = [weighted.seed.article_id for weighted in seeds if weighted.seed.HasField("article_id")]
        articles = [key for key in (*named, *ranking.exclude_ids, *ranking.priors) if key not in entries]
        return [*articles, *(key for key in clusters_named(ranking.filter) if key not in LABELS)]


def summary_of(key: str, entry: Entry) -> ArticleSummary:
    found = ArticleSummary(
        id=key,
        title=entry.title,
        excerpt=entry.content[:80] or entry.title,
        cluster_id=entry.cluster,
        attributes=entry.attributes,
        story_id=key,
        centrality=dot(entry.vector, CENTROIDS[entry.cluster]),
        live=entry.live,
    )
    if entry.published_at:
        found.published_at.FromDatetime(entry.published_at)
    return found


def entry_of(key: str) -> Entry:
    title, date, home, vector = ARTICLES[key]
    published_at = datetime.fromisoformat(date).replace(tzinfo=UTC) if date else None
    return Entry(title, "", published_at, home, vector, {"section": SECTIONS[home]})


def entry_of_article(article: Article) -> Entry:
    vector = vector_of(f"{article.title}\n{article.content}")
    home = max(CENTROIDS, key=lambda key: dot(vector, CENTROIDS[key]))
    date = article.published_at.ToDatetime(UTC) if article.HasField("published_at") else None
    return Entry(article.title, article.content, date, home, vector, dict(article.attributes), live=True)


def vector_of(text: str) -> tuple[float, float, float]:
    counts = [float(text.lower().count(word)) for word in WORDS]
    length = sum(count * count for count in counts) ** 0.5 or 1.0
    return counts[0] / length, counts[1] / length, counts[2] / length


def usage_of(text: str) -> Usage:
    seen = len(text.split()) + 2
    return Usage(tokens_seen=seen, tokens_used=min(seen, MAX_TOKENS))


def usage_of_seed(seed: Seed) -> Usage | None:
    return usage_of(text_of(seed)) if seed.WhichOneof("seed") in ("text", "article") else None


def text_of(seed: Seed) -> str:
    return seed.text or f"{seed.article.title}\n{seed.article.content}"


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def total(why: Explanation) -> float:
    return why.similarity + why.negative + why.recency + why.prior + why.diversity


def freshness(date: datetime | None, ranking: Ranking) -> float:
    if date is None or not ranking.HasField("half_life"):
        return 1.0
    now = ranking.as_of.ToDatetime(UTC) if ranking.HasField("as_of") else NOW
    return float(2 ** (-max(0, (now - date).total_seconds()) / ranking.half_life.ToTimedelta().total_seconds()))


def diversified(hits: list[Hit], diversity: float, entries: dict[str, Entry]) -> list[Hit]:
    """Greedy: the next one is the best after a penalty for likeness to those before it."""
    chosen: list[Hit] = []
    while diversity and hits:
        for hit in hits:
            vector = entries[hit.article.id].vector
            like = max((dot(vector, entries[before.article.id].vector) for before in chosen), default=0.0)
            hit.explanation.diversity = -diversity * max(0.0, like)
            hit.score = total(hit.explanation)
        best = min(hits, key=lambda hit: (-hit.score, hit.article.id))
        chosen.append(best)
        hits.remove(best)
    return chosen or hits


def limited_per_cluster(hits: list[Hit], most: int) -> list[Hit]:
    seen: list[str] = []
    kept = []
    for hit in hits:
        seen.append(hit.article.cluster_id)
        if not most or seen.count(hit.article.cluster_id) <= most:
            kept.append(hit)
    return kept


def masked(hits: Sequence[Hit], mask: FieldMask) -> list[Hit]:
    """What was asked for of each hit."""
    wanted = mask if mask.paths else FieldMask(paths=["article", "score"])
    shown = []
    for hit in hits:
        shown.append(Hit())
        wanted.MergeMessage(hit, shown[-1])
    return shown


def matches(condition: Filter, entry: Entry) -> bool:
    kind = condition.WhichOneof("condition")
    if kind == "attribute":
        return attribute_matches(condition.attribute, entry.attributes)
    if kind == "published":
        bounds, date = condition.published, entry.published_at
        after = not bounds.HasField("since") or (date is not None and date >= bounds.since.ToDatetime(UTC))
        return date is not None and after and (not bounds.HasField("before") or date < bounds.before.ToDatetime(UTC))
    if kind == "cluster":
        return entry.cluster in condition.cluster.ids
    if kind == "all_of":
        return all(matches(part, entry) for part in condition.all_of.filters)
    if kind == "any_of":
        return any(matches(part, entry) for part in condition.any_of.filters)
    return kind is None or not matches(getattr(condition, "not"), entry)


def attribute_matches(condition: AttributeFilter, attributes: dict[str, str]) -> bool:
    value = attributes.get(condition.key)
    kind = condition.WhichOneof("condition")
    if kind == "range" and value is not None:
        low = condition.range.min if condition.range.HasField("min") else float("-inf")
        high = condition.range.max if condition.range.HasField("max") else float("inf")
        return low <= float(value) <= high
    return value in getattr(condition, "in").values if kind == "in" else value is not None


def clusters_named(condition: Filter) -> list[str]:
    kind = condition.WhichOneof("condition")
    if kind in ("all_of", "any_of"):
        return [key for part in getattr(condition, kind).filters for key in clusters_named(part)]
    return clusters_named(getattr(condition, "not")) if kind == "not" else list(condition.cluster.ids)


def known_cluster(cluster_id: str) -> str:
    if cluster_id not in LABELS:
        raise UnknownCluster(f"no cluster has the id '{cluster_id}'.")
    return cluster_id


def checked(article: Article, number: int) -> Article:
    for name in ("id", "title"):
        if not getattr(article, name):
            where = f"articles[{number}].{name}"
            raise InvalidArgument(f"{where} is empty; give 1 to 512 characters", field=where)
    return article
