"""The backend's answers, without HTTP: what is asked of Coldframe for a reader and for an article."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from coldframe import article, expansion
from examples.backend.readers import Readers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coldframe import Client
    from coldframe.v1.types_pb2 import ArticleSummary, Hit

HALF_LIFE = timedelta(days=3)
DIVERSITY = 0.2


class Backend:
    """Recommends to readers, takes articles in and down. Raises the errors of `coldframe.errors`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._readers = Readers()

    def front_page(self, reader_id: str, limit: int = 10) -> dict[str, Any]:
        """What to show a reader; to one of whom nothing is known, the newest of the clusters that grow."""
        reader = self._readers[reader_id]
        if not reader.known:
            return {"because": "new here", "articles": self._fresh(limit)}
        reply = self._client.recommend(
            reader.seeds(),
            limit=limit,
            exclude_ids=reader.seen(),
            half_life=HALF_LIFE,
            diversity=DIVERSITY,
            expansion=expansion(),
            read_mask=["article.id", "article.title", "score", "explanation"],
        )
        interests = [interest.cluster_label for interest in reply.interests]
        # Log the token with what the reader clicks: it ties the click to index, model and request.
        token = reply.served_by.attribution_token
        return {"because": interests, "articles": [_explained(hit) for hit in reply.hits], "token": token}

    def _fresh(self, limit: int) -> list[dict[str, Any]]:
        """One article of each cluster: those that grow first, then those with the newest articles."""
        growing = [item.cluster.id for item in self._client.trending(limit=limit, min_count=1).clusters]
        others = (cluster.id for cluster in self._client.clusters(order="freshness") if cluster.size)
        chosen = list(dict.fromkeys([*growing, *others]))[:limit]
        return [_shown(next(self._client.cluster_articles(one, order="newest", page_size=1))) for one in chosen]

    def interested(self, reader_id: str, words: str) -> None:
        """A reader typed what they care about."""
        self._readers[reader_id].interests.append(words)

    def read(self, reader_id: str, article_id: str) -> None:
        """A reader opened an article."""
        self._readers[reader_id].read.append(article_id)

    def disliked(self, reader_id: str, article_id: str) -> None:
        """A reader waved an article away."""
        self._readers[reader_id].disliked.append(article_id)

    def publish(self, fields: dict[str, str]) -> dict[str, Any]:
        """A desk published or corrected an article: it is recommended from now on. fields: id, title, content."""
        new = article(
            fields.get("id", ""),
            title=fields.get("title", ""),
            content=fields.get("content", ""),
            published_at=datetime.now(UTC),
            attributes={"section": fields["section"]} if "section" in fields else None,
        )
        (result,) = self._client.upsert([new], cluster_limit=1, neighbor_limit=3).results
        return {
            "cluster": result.clusters[0].cluster.label,
            "story": result.article.story_id,
            "related": [_shown(hit.article) for hit in result.neighbors],
        }

    def related(self, article_id: str, limit: int = 5) -> list[dict[str, Any]]:
        """What stands below an article: the nearest of other stories."""
        return [_shown(hit.article) for hit in self._client.search(article_id=article_id, limit=limit).hits]

    def take_down(self, article_ids: Iterable[str]) -> list[str]:
        """Articles that must not be shown any more, in force when this returns. Returns those that were there."""
        ids = list(article_ids)
        for one in ids:
            self._readers.forget(one)
        return list(self._client.delete(ids).deleted_ids)


def _shown(found: ArticleSummary) -> dict[str, Any]:
    return {"id": found.id, "title": found.title}


def _explained(hit: Hit) -> dict[str, Any]:
    why = hit.explanation
    return {**_shown(hit.article), "score": round(hit.score, 4), "interest": why.interest, "topic": why.cluster_label}
