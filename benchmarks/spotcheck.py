"""Read with your own eyes: python -m benchmarks.spotcheck --corpus FILE --server HOST:PORT [--articles 20]

Draws articles of a corpus that is being served, has the server embed each anew (a seed text that it knows would get
its stored vector), and prints its headline, the labels of the clusters nearest to that vector and its nearest
neighbour's headline, for a person to judge.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from coldframe import Client
from coldframe.text import article_text
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
            vector = client.embed([article_text(row.title, row.content)]).embeddings[0].vector.values
            clusters = client.nearest_clusters(vector=vector, limit=2).matches
            held = client.nearest_clusters(article_id=row.id, limit=1).matches[0]  # by the vector in the index
            own += held.cluster.id == clusters[0].cluster.id
            neighbours = client.search(article_id=row.id, limit=1).hits
            print(f"{row.id}  {row.title}")
            for match in clusters:
                print(f"    {match.similarity:.3f}  {match.cluster.label}")
            print(f"    like: {neighbours[0].article.title}")
    print(f"nearest cluster is the article's own: {own} of {args.articles}")


if __name__ == "__main__":
    main()
