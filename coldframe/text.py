"""What of an article is embedded, and how a text is recognised when it comes again."""

from __future__ import annotations

import hashlib

MAX_TEXT_CHARS = 1_000_000
"""Longer texts are refused, by the indexer and the server alike: no article is so long, and a mistake often is."""


def article_text(title: str, content: str) -> str:
    """The text that stands for an article: its title, a line break, its content; either may be empty."""
    return "\n".join(part for part in (title.strip(), content.strip()) if part)


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for equal texts."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
