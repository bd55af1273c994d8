"""HTML -> the text that a reader sees. Text without markup comes back as it is.

lxml does the parsing (docs/decisions/0010); what is added here is the doubt whether a "<" or an "&" is markup at all.
It is if an element of HTML, a comment or an entity with its semicolon follows: "5 < 6", "x<y", "<3" and "AT&T" are
text, and so is an entity's name without a semicolon.

Feeds encode what is already encoded. Text without tags is decoded until tags show, and entities that are left when the
tags are gone are decoded too: "&lt;p&gt;R&amp;amp;D&lt;/p&gt;" is "R&D". The price: in text without a tag of its own,
an encoded tag is taken for one that was meant. "<p>the &lt;b&gt; tag</p>" is "the <b> tag".
"""

from __future__ import annotations

import html
import re
from html.entities import html5

from lxml import etree

from coldframe.text import is_unicode

_LEVELS = 3  # of entities within entities
_BREAK = "\u2029"  # PARAGRAPH SEPARATOR, until white space is made normal

_HIDDEN_NAMES = "iframe noscript script select style svg template textarea title"
_BLOCK_NAMES = (
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption"
    " figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol option p pre search"
    " section summary table tbody tfoot thead tr ul"
)
_CELL_NAMES = "td th"
_INLINE_NAMES = (
    "a abbr acronym applet area audio b base basefont bdi bdo big button canvas cite code col colgroup data datalist"
    " del dfn em embed font frame frameset head i img input ins kbd label link map mark math meta meter noembed"
    " noframes object optgroup output param picture progress q rb rp rt rtc ruby s samp slot small source span"
    " strike strong sub sup time track tt u var video wbr"
)
_HIDDEN = frozenset(_HIDDEN_NAMES.split())  # what they hold is no part of the text
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_CELLS = frozenset(_CELL_NAMES.split())
_HTML = "|".join(sorted({*_HIDDEN, *_BLOCKS, *_CELLS, *_INLINE_NAMES.split()}))
# The elements of HTML, those of other vocabularies (o:p, fb:like) and those that sites define (amp-img).
_NAME = rf"(?:(?:{_HTML})(?![\w:-])|[a-z]\w*:[a-z][\w-]*|[a-z]+-[a-z][\w-]*)"
_FLAG = (
    r"(?:allowfullscreen|async|autoplay|checked|compact|controls|crossorigin|default|defer|disabled|download|hidden"
    r"|ismap|itemscope|loop|multiple|muted|nomodule|noshade|novalidate|nowrap|open|playsinline|readonly|required|reversed"
    r"|selected)(?![\w:-])"
)
# "<p and q>" is no tag: the first word after the name is an attribute's with a value, or one that needs none.
_MARKUP_START = re.compile(
    rf"<(?:/{_NAME}\s*>|{_NAME}(?:\s++{_FLAG})*+(?:\s*+(?:/\s*+)?>|\s++[a-z_:@][\w:.-]*+\s*=)"
    r"|!--|!doctype\s|!\[CDATA\[|\?(?:xml|php)\b)",
    re.IGNORECASE,
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)(?:\]\]>|\Z)", re.DOTALL)
# As its author meant it, <script src="x"/> holds nothing; to HTML it would hold the rest of the article.
_CLOSED_AT_ONCE = re.compile(rf"<({'|'.join(sorted(_HIDDEN))})(\s[^<>]*)?/>", re.IGNORECASE)
_OPEN_AT_THE_END = re.compile(r"<[^<>]*\Z")
_ENTITY = re.compile(r"&(#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n\s*\n")


def clean(text: str) -> str:
    """Tags, scripts, styles and comments out, entities decoded, paragraphs as lines, white space normal.

    Never raises. Text in which there is neither a tag nor an entity is returned as it is, and so is text that is not
    Unicode: the caller refuses it.
    """
    if not is_unicode(text):
        return text
    found = text
    for level in range(_LEVELS):
        if _MARKUP_START.search(found):
            found = _decode(_visible(found), _LEVELS - level - 1)
            break
        if (decoded := _decode(found, 1)) == found:
            break
        found = decoded
    return text if found is text else _normal(found)


def _visible(markup: str) -> str:
    """What a reader sees, with marks for breaks."""
    markup = _CLOSED_AT_ONCE.sub(r"<\1\2></\1>", _CDATA.sub(r"\1", markup))
    if markup.rfind("<!--") > markup.rfind("-->"):
        markup += "-->"
    parser = etree.HTMLParser(target=_Visible(), huge_tree=True, encoding="utf-8")
    parser.feed(_OPEN_AT_THE_END.sub("", _escape_text(markup)).encode())
    return str(parser.close())


def _escape_text(markup: str) -> str:
    """Encode each "<" that begins no markup and each "&" that begins no entity: parsers guess, and guess wrong."""
    markup = re.sub("<", lambda found: "<" if _MARKUP_START.match(markup, found.start()) else "&lt;", markup)
    return re.sub("&", lambda found: "&" if _entity_at(markup, found.start()) else "&amp;", markup)


def _entity_at(text: str, start: int) -> bool:
    found = _ENTITY.match(text, start)
    return found is not None and _is_known(found)


def _is_known(entity: re.Match[str]) -> bool:
    return entity[1].startswith("#") or f"{entity[1]};" in html5


def _decode(text: str, levels: int) -> str:
    for _ in range(levels):
        text = _ENTITY.sub(lambda found: html.unescape(found[0]) if _is_known(found) else found[0], text)
    return text


def _normal(text: str) -> str:
    """One space between words, one line break between paragraphs."""
    lines = (" ".join(line.split()) for line in re.split(f"[\n{_BREAK}]", text))
    return "\n".join(line for line in lines if line)


class _Visible:
    """What lxml tells of a document, turned into text: no tree is made, and no depth of nesting is too much."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._hiding = ""
        self._depth = 0

    def start(self, tag: str, _attributes: object) -> None:
        """A tag begins; each has an end, written or not."""
        self._separate(tag)
        if tag in _HIDDEN and not self._hiding:
            self._hiding = tag
        self._depth += tag == self._hiding

    def end(self, tag: str) -> None:
        """And ends."""
        self._separate(tag)
        self._depth -= tag == self._hiding
        if not self._depth:
            self._hiding = ""

    def data(self, text: str) -> None:
        """Text, entities decoded."""
        if not self._hiding:
            self._pieces.append(_BLANK_LINES.sub(_BREAK, text).replace("\n", " "))

    def comment(self, _text: str) -> None:
        """Nothing that is seen."""

    def pi(self, _target: str, _data: str | None = None) -> None:
        """Nothing that is seen."""

    def close(self) -> str:
        """The end of the document."""
        return "".join(self._pieces)

    def _separate(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._pieces.append(_BREAK)
        elif tag in _CELLS:
            self._pieces.append(" ")
