"""Replies that are too large to be sent: what whoever asked for them hears."""

from __future__ import annotations

from coldframe.errors import InvalidArgument

_HITS = "ask for fewer hits by limit, or for less of each by ranking.read_mask"
_WRITTEN = "what it was to write is written; ask for fewer neighbors of each by neighbor_limit"
_LESS = {
    "SearchService/Search": ("limit", _HITS),
    "SearchService/StreamSearch": ("limit", _HITS),
    "SearchService/Recommend": ("limit", _HITS),
    "SearchService/BatchSearch": ("requests", f"send fewer searches at once, or in each {_HITS}"),
    "SearchService/NearestClusters": ("limit", "ask for fewer clusters by limit"),
    "ClusterService/ListClusters": ("page_size", "ask for fewer clusters a page by page_size"),
    "ClusterService/GetCluster": ("neighbor_limit", "ask for fewer neighbors by neighbor_limit"),
    "ClusterService/ListClusterArticles": ("page_size", "ask for fewer articles a page by page_size"),
    "ClusterService/TrendingClusters": ("limit", "ask for fewer clusters by limit"),
    "ArticleService/GetArticle": ("neighbor_limit", "ask for fewer neighbors by neighbor_limit"),
    "ArticleService/UpsertArticles": ("neighbor_limit", _WRITTEN),
    "ArticleService/StreamUpsertArticles": ("neighbor_limit", _WRITTEN),
    "ArticleService/DeleteArticles": ("ids", "they are deleted; send fewer ids at once"),
    "EmbeddingService/Embed": ("texts", "send fewer texts at once"),
    "EmbeddingService/StreamEmbed": ("texts", "send fewer texts at once"),
}


def too_large(size: int, most: int, method: str) -> InvalidArgument:
    """What stands for a reply of so many bytes, of a method "/package.Service/Method"."""
    field, advice = _LESS.get(method.rpartition(".")[2], ("", "this server's operator may allow more"))
    return InvalidArgument(f"the reply has {size:,} bytes, and at most {most:,} are sent; {advice}", field=field)
