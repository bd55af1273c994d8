"""What each section of the page says: figures, sentences and tables, as plain data for the template.

A section whose facts are not there is None, and the page leaves it out.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.choose import NOT_NEEDED
from indexer.report import figures
from indexer.report.contents import SHORT_MODEL, Contents
from indexer.report.projection import FEWEST, project, sample_rows
from indexer.report.wording import count, mebibytes, percent
from indexer.sample import take

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from coldframe.clusters import Cluster

MOST_CARDS = 60
MOST_ROWS = 2_000
_MOST_CHANGES = 40
_MOST_STORIES = 8
_LABEL_CHARS = 34

Section = dict[str, Any]


def corpus_map(contents: Contents) -> Section:
    """The map, its legend, and the hover text of each point; `why` instead where there is too little to draw."""
    seed = contents.facts.parameters.seed
    rows = sample_rows(contents.story_of, seed)
    if len(rows) < FEWEST:
        return {"why": f"A map needs at least {FEWEST} stories; this corpus has {len(rows)}."}
    places = project(take(contents.vectors, rows), seed)
    clusters = contents.assignment[rows]
    groups = contents.group_of[clusters]
    order = np.argsort(groups != len(contents.groups) - 1, kind="stable")  # what is grey lies below
    rows, places, clusters, groups = rows[order], places[order], clusters[order], groups[order]
    colours = [contents.groups[group].colour for group in groups]
    return {
        "figure": figures.corpus_map(places, colours, _map_labels(contents, places, groups)),
        "groups": contents.groups,
        "points": len(rows),
        "stories": int(np.count_nonzero(contents.story_of == np.arange(len(contents.articles)))),
        "tips": [
            [contents.headline(int(row)), int(cluster), int(group)]
            for row, cluster, group in zip(rows, clusters, groups, strict=True)
        ],
    }


def _map_labels(
    contents: Contents, places: NDArray[np.float32], groups: NDArray[np.int64]
) -> list[tuple[str, float, float]]:
    """Each group's name where most of its points are."""
    labels = []
    for number, group in enumerate(contents.groups):
        points = places[groups == number]
        if group.colour != "other" and len(points):
            x, y = np.median(points, axis=0)
            labels.append((_shorten(group.label), float(x), float(y)))
    return labels


def _shorten(label: str) -> str:
    """As many of a label's terms as there is room for."""
    terms = label.split(", ")
    while len(terms) > 1 and len(", ".join(terms)) > _LABEL_CHARS:
        terms.pop()
    text = ", ".join(terms)
    return text if len(text) <= _LABEL_CHARS else text[: _LABEL_CHARS - 1] + "…"


def clusters(contents: Contents) -> Section:
    """Sizes, cards by topic, and a table of all."""
    by_size = contents.by_size
    sizes = np.array([cluster.size for cluster in by_size])
    outliers = np.array([cluster.outliers for cluster in by_size])
    numbers = {cluster.id: n for n, cluster in enumerate(contents.table.clusters)}
    groups = [int(contents.group_of[numbers[cluster.id]]) for cluster in by_size]
    colours = [contents.groups[group].colour for group in groups]
    return {
        "figure": figures.cluster_sizes(sizes, outliers, colours),
        "tips": [f"{count(c.size, 'article')}, {count(c.outliers, 'outlier')}" for c in by_size],
        "tip_clusters": [numbers[cluster.id] for cluster in by_size],
        "count": len(by_size),
        "median": count(float(np.median(sizes)), "article"),
        "range": _from_to(int(sizes.min()), int(sizes.max())),
        "outliers": int(outliers.sum()),
        "outlier_share": percent(float(outliers.sum() / sizes.sum())),
        "topics": _topics(contents),
        "shown": min(len(by_size), MOST_CARDS),
        "table": [_row(contents, cluster) for cluster in by_size[:MOST_ROWS]],
    }


def _from_to(least: int, most: int) -> str:
    return count(most, "article") if least == most else f"{least:,} to {count(most, 'article')}"


def _topics(contents: Contents) -> list[Section]:
    """Cards of the largest clusters under their topics; under none where there are no topics."""
    chosen = contents.by_size[:MOST_CARDS]
    colour_of = {group.label: group.colour for group in contents.groups}
    named = {topic.id: topic for topic in contents.table.topics}
    topics = []
    for name in [*named, None]:
        cards = [_card(contents, cluster) for cluster in chosen if (cluster.topic if named else None) == name]
        topic = named.get(name or "")
        if cards:
            colour = colour_of.get(topic.label, "other") if topic else "other"
            topics.append({"topic": topic, "colour": colour, "cards": cards})
    return topics


def _card(contents: Contents, cluster: Cluster) -> Section:
    told = set(cluster.label.split(", "))
    return {
        "cluster": cluster,
        "share": percent(cluster.size / max(len(contents.articles), 1)),
        "terms": [term for term, _ in cluster.terms if term not in told],
        "headlines": [contents.headline(row) for row in cluster.representatives],
        "closeness": f"{1 - cluster.residuals.p50:.2f}",
        "outlier_share": percent(cluster.outliers / max(cluster.size, 1)),
        "lineage": _lineage(cluster),
    }


def _row(contents: Contents, cluster: Cluster) -> Section:
    topics = {topic.id: topic.label for topic in contents.table.topics}
    return {
        "id": cluster.id,
        "label": cluster.label,
        "topic": topics.get(cluster.topic or "", ""),
        "size": f"{cluster.size:,}",
        "outliers": f"{cluster.outliers:,}",
        "closeness": f"{1 - cluster.residuals.p50:.2f}",
        "lineage": _lineage(cluster),
    }


def _lineage(cluster: Cluster) -> str:
    """Where a cluster comes from, in a few words; nothing where there is nothing to tell."""
    lineage = cluster.lineage
    if lineage.kind in ("split", "merged") and lineage.parents:
        return f"{lineage.kind} from {', '.join(lineage.parents[:3])}"
    return "" if lineage.kind == "first" else lineage.kind


def changes(contents: Contents) -> Section | None:
    """What became of the previous generation's clusters; None where there was none."""
    report = contents.facts.report
    counts = report.get("lineage") or {}
    kinds = [cluster.lineage.kind for cluster in contents.table.clusters]
    if not counts.get("kept") and set(kinds) <= {"first"} and report.get("drift") is None:
        return None
    names = {gone.id: gone.label for gone in contents.table.vanished}
    names |= {cluster.id: cluster.label for cluster in contents.table.clusters}
    changed = [cluster for cluster in contents.by_size if cluster.lineage.kind in ("new", "split", "merged")]
    survived, drift = counts.get("survived"), report.get("drift")
    return {
        "kinds": [(kind, kinds.count(kind)) for kind in ("kept", "new", "split", "merged")],
        "clusters": len(kinds),
        "survived": None if survived is None else percent(survived),
        "drift": None if drift is None else f"{drift:.3f}",
        "changed": [(cluster, _named(cluster.lineage.parents, names)) for cluster in changed[:_MOST_CHANGES]],
        "changed_left_out": max(len(changed) - _MOST_CHANGES, 0),
        "vanished": [(gone, _named(gone.into, names)) for gone in contents.table.vanished[:_MOST_CHANGES]],
        "vanished_count": len(contents.table.vanished),
        "previous": contents.facts.previous,
    }


def _named(ids: Iterable[str], names: dict[str, str]) -> str:
    return "; ".join(f"{name} {names[name]}" if name in names else name for name in list(ids)[:3])


def lengths(contents: Contents) -> Section:
    """The histogram and what a short model would have lost."""
    tokens, most = contents.lengths, contents.facts.model.max_tokens
    return {
        "figure": figures.lengths(tokens, most),
        "short": SHORT_MODEL,
        "max_tokens": most,
        "lost_articles": percent(contents.lost.articles),
        "lost_tokens": percent(contents.lost.tokens),
        "lost": contents.lost.articles > 0,
        "median": f"{float(np.median(tokens)):,.0f}",
        "longest": f"{int(tokens.max()):,}",
        "truncated": contents.facts.corpus.truncated,
    }


def stories(contents: Contents) -> Section | None:
    """What was folded together; None where nothing was looked for."""
    counts = contents.facts.report.get("stories")
    if not counts:
        return None
    return {
        **{key: counts.get(key) for key in ("stories", "duplicates", "near_duplicates")},
        "largest": [(contents.headline(story.row), story.articles) for story in contents.stories(_MOST_STORIES)],
    }


def search(contents: Contents) -> Section | None:
    """Recall by lists visited, and the storages that were weighed; None where nothing was measured."""
    report, parameters = contents.facts.report, contents.facts.parameters
    curve = sorted(tuple(point) for point in report.get("recall_by_probes") or [])
    if not curve:
        return None
    recall = report.get("recall_at_10")
    storages = report.get("storages") or []
    return {
        "figure": figures.recall_curve(curve, parameters.probes, report.get("target_recall")),
        "probes": parameters.probes,
        "visited": report.get("lists_visited") or parameters.probes,
        "clusters": parameters.clusters,
        "recall": None if recall is None else percent(recall),
        "target": None if report.get("target_recall") is None else percent(report["target_recall"]),
        "storage": parameters.storage,
        "storages": [_storage(kind) for kind in storages if kind.get("reason") != NOT_NEEDED],
        "spared": [kind["storage"] for kind in storages if kind.get("reason") == NOT_NEEDED],
    }


def _storage(kind: dict[str, Any]) -> Section:
    """One storage that was weighed; what was not measured of it is a dash."""

    def said(key: str, say: Any) -> str:
        return "-" if kind.get(key) is None else str(say(kind[key]))

    return {
        "storage": said("storage", str),
        "memory": said("bytes", lambda size: mebibytes(size / 2**20)),
        "recall": said("recall", percent),
        "probes": said("probes", "{:,}".format),
        "latency": said("latency_ms", "{:.2g} ms".format),
        "note": kind.get("reason") or "",
    }


def work(contents: Contents) -> Section:
    """What the build took, what it reused, and what it was asked for."""
    report, facts = contents.facts.report, contents.facts
    seconds = report.get("seconds") or {}
    cache = report.get("cache") or {}
    texts = cache.get("reused", 0) + cache.get("computed", 0)
    return {
        "figure": figures.phases(seconds, report.get("peak_memory_mib") or {}) if seconds else None,
        "total": sum(seconds.values()),
        "mostly_embedding": seconds.get("embed", 0.0) > 0.5 * sum(seconds.values()),
        "cache": {**cache, "share": percent(cache["reused"] / texts), "texts": texts} if texts else None,
        "parameters": [
            (key.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else value)
            for key, value in asdict(facts.parameters).items()
            if value is not None
        ],
        "corpus": facts.corpus,
        "live": report.get("live"),
        "model": facts.model,
        "precision": facts.precision,
    }
