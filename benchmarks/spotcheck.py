"""Read with your own eyes: python -m benchmarks.spotcheck --corpus FILE --server HOST:PORT [--articles 20]

Draws articles of a corpus that is being served, sends each as an article the server has never seen (its id left
out), and prints its headline, its clusters' labels and its nearest neighbour's headline, for a person to judge.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from coldframe import Client
from coldframe.v1.types_pb2 import Article
from indexer import corpus


def main() -> None:
    """Print one block per article, and how often the nearest cluster is the article's own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--articles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [row for row in corpus.read([args.corpus], corpus.Columns()) if isinstance(row, corpus.Article)]
    own = 0
    with Client(args.server, timeout=120) as client:
        for row in random.Random(args.seed).sample(rows, args.articles):
            article = Article(title=row.title, content=row.content)
            clusters = client.nearest_clusters(article=article, limit=2).matches
            neighbours = client.search(article=article, limit=2).hits
            own += any(
                hit.article.id == row.id and hit.article.cluster_id == clusters[0].cluster.id for hit in neighbours
            )
            print(f"{row.id}  {row.title}")
            for match in clusters:
                print(f"    {match.similarity:.3f}  {match.cluster.label}")
            print(f"    like: {next(hit.article.title for hit in neighbours if hit.article.id != row.id)}")
    print(f"nearest cluster is the article's own: {own} of {args.articles}")


if __name__ == "__main__":
    main()
