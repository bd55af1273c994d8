"""What a dry run keeps of the corpus that it looks at."""

from __future__ import annotations

import random

from indexer.corpus import Article, Reject
from indexer.estimate import Sample


def told(number: int, text: str) -> Article:
    return Article(f"{number}", "", text, None, {"desk": "Sport"}, "a.csv", number)


def test_copies_are_articles_and_one_text() -> None:
    sample, kept = Sample(), random.Random(0)
    for row in (told(1, "Flood"), told(2, "Flood"), Reject("a.csv", 3, "empty id", ""), told(4, "Überflutet")):
        sample.add(row, kept)
    assert (sample.rows, sample.articles) == (4, 3)
    assert (len(sample.digests), sample.chars, sample.texts) == (2, len("FloodÜberflutet"), ["Flood", "Überflutet"])
    assert sample.source_bytes == len("FloodFloodÜberflutet".encode()) + 3 * len("deskSport")


def test_texts_are_kept_from_all_over_a_corpus_that_is_in_the_order_of_their_lengths() -> None:
    sample, kept = Sample(), random.Random(0)
    for number in range(3_000):
        sample.add(told(number, f"{number}"), kept)
    assert len(sample.texts) == len(set(sample.texts)) == 200
    thirds = [sum(int(text) // 1_000 == third for text in sample.texts) for third in range(3)]
    assert min(thirds) > 40, "about 67 of each"
