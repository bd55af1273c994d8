"""Neighbour label agreement on articles that the default recipe of `minilm` was not chosen on, beside TF-IDF.

    python -m benchmarks.labels --corpus ../shared/data/wikispeedia/articles.csv.gz --chosen-on 1500 --sample 500

Decision 15 chose the recipe on samples that `indexer evaluate --sample N --seed 0` draws. This leaves those articles
out, and measures every recipe, or those that are named, on a sample of the others, with seed 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console

from coldframe.encoder import Encoder
from coldframe.recipe import RECIPES, named
from indexer.corpus import Article, CorpusConfig
from indexer.evaluate.command import show
from indexer.evaluate.corpus import load
from indexer.evaluate.run import Config, evaluate

_CHOSEN_SEED, _SEED = 0, 1


def main() -> None:
    """Evaluate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--chosen-on", type=int, required=True, help="articles that the recipe was chosen on")
    parser.add_argument("--sample", type=int, help="articles to measure; without it all that are left")
    parser.add_argument("--recipes", nargs="+", help="without it all of them")
    parser.add_argument("--store", type=Path, help="whose embeddings are taken, if one recipe alone is asked for")
    args = parser.parse_args()
    recipes = [named(name) for name in args.recipes] if args.recipes else list(RECIPES.values())
    console = Console(highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as folder:
        left = write_left(args.corpus, args.chosen_on, Path(folder) / "left.jsonl")
        config = Config(CorpusConfig([str(left)]), recipes, sample=args.sample, seed=_SEED, store=args.store)
        encoder = Encoder.load("minilm", recipes[0].name if len(recipes) == 1 else None)
        show(evaluate(config, encoder, console.print), console)


def write_left(corpus: str, chosen_on: int, path: Path) -> Path:
    """Writes the articles that the recipe was not chosen on, and that repeat none of those, as JSON lines."""
    source = CorpusConfig([corpus])
    known = load(source, None, chosen_on, _CHOSEN_SEED).rows
    with path.open("w", encoding="utf-8") as file:
        for row in source.read():
            if isinstance(row, Article) and row.id not in known:
                fields = {"id": row.id, "title": row.title, "content": row.content, **row.attributes}
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    main()
