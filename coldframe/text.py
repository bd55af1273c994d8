"""What of an article is embedded, and how a text is recognised when it comes again."""

from __future__ import annotations

import hashlib
from unicodedata import normalize

MAX_TEXT_CHARS = 1_000_000
"""Longer texts are refused, by the indexer and the server alike: no article is so long, and a mistake often is."""


def article_text(title: str, content: str) -> str:
    """The text that stands for an article: its title, a line break, its content; either may be empty."""
    return "\n".join(part for part in (title.strip(), content.strip()) if part)


def is_unicode(text: str) -> bool:
    """Whether a text holds no surrogate: readers let one stand for a byte that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_digest(text: str) -> bytes:
    """16 bytes that are equal for equal texts."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# Soft hyphens, word joiners, byte order marks in the middle, and which variant of a sign is meant.
_UNSEEN = dict.fromkeys([0xAD, 0x2060, 0xFEFF, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])


def seen(text: str) -> str:
    """The text with accents written one way, and without the characters that part no words and show no sign."""
    return text if text.isascii() else normalize("NFC", text.translate(_UNSEEN))
