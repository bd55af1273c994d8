"""Markup goes, the text stays; and what only looks like markup is text."""

from __future__ import annotations

import html
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.clean import clean

CLEANED = [
    # blocks
    ("<p>One</p><p>Two<br>Three</p>", "One\nTwo\nThree"),
    ("<div>a<div>b</div>c</div>", "a\nb\nc"),
    ("<ul><li>a<li>b</ul>", "a\nb"),
    ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
    ("<P ALIGN=center>A<BR/>b", "A\nb"),
    ("<b>First.</b>\n\nSecond\nline", "First.\nSecond line"),
    # inline
    ("x <i>is</i>n't <b>a</b> <b>b</b>", "x isn't a b"),
    ("<a href='x' title='a > b'>link</a>", "link"),
    ("<o:p></o:p>word<amp-img src=x></amp-img><fb:like>", "word"),
    ("  <p> a \t b\u00a0c </p> ", "a b c"),
    # what is not seen
    ("<script>if (a<b) x('</p>')</script>text<style>p{}</style><!-- c --> end", "text end"),
    ("<html><head><title>t</title></head><body>b</body></html>", "b"),
    ("<svg><title>x</title><text>y</text></svg><iframe src='x'>z</iframe><noscript>w</noscript>v", "v"),
    ("<script src='x'/>a<iframe src='y'/>b", "ab"),
    ("<?xml version='1.0'?><!DOCTYPE html><p>x", "x"),
    # cut short
    ('cut <a href="http://x', "cut"),
    ("one<!-- never closed <p>x", "one"),
    ("<script>never closed", ""),
    # entities
    ("Tom &amp; Jerry &#8217;s &#x2019;&nbsp;&eacute;", "Tom & Jerry \u2019s \u2019 é"),
    ("&amp;amp; &amp;lt;", "& <"),
    ("&lt;p&gt;R&amp;amp;D&lt;/p&gt;&lt;p&gt;x", "R&D\nx"),
    ("<![CDATA[<p>a</p>]]>", "a"),
    ("<p>the &lt;b&gt; tag</p>", "the <b> tag"),
    ("&#3;end &#5;&#0;", "end \ufffd"),
    # text among markup
    ("<p>5 < 6 & 7 > 3, x<y, AT&T, 0.01 <p and n=20, <3, &copy b &notit;</p>",
     "5 < 6 & 7 > 3, x<y, AT&T, 0.01 <p and n=20, <3, &copy b &notit;"),
]  # fmt: skip

PLAIN = [
    "", "  two  spaces\n\n\nand lines \t", "5 < 6 & 7 > 3", "x<y>z", "AT&T", "R&D;", "<3", "a<b and c>d", "&notit;",
    "&amp", "<john@example.com>", "<http://example.com>", "0.01 <p and n=20", "<main idea>", "&;", "&#;", "&#x;",
    "< p >", "</>", "<!x>", "<?x?>", "<pen>", "<-- here", "caf\udce9 <p>",
]  # fmt: skip


@pytest.mark.parametrize(("markup", "text"), CLEANED)
def test_what_a_reader_sees_is_left(markup: str, text: str) -> None:
    assert clean(markup) == text


@pytest.mark.parametrize("text", PLAIN)
def test_text_without_markup_is_not_touched(text: str) -> None:
    assert clean(text) is text


# Words of everything but what could be an entity or end in one.
plain = st.text(st.characters(codec="utf-8", exclude_characters=";")).filter(lambda text: not clean_would_find(text))
words = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1), min_size=1)


def clean_would_find(text: str) -> bool:
    """A "<" before a letter, a "/", a "!" or a "?"; a slow and generous reading of where markup can begin."""
    return any(before == "<" and (after.isalpha() or after in "/!?") for before, after in pairwise(text))


@given(plain)
def test_any_plain_text_is_not_touched(text: str) -> None:
    assert clean(text) is text


@given(words)
def test_any_text_that_was_encoded_as_html_comes_back(said: list[str]) -> None:
    text = " ".join(said).replace("&", "and")
    assert clean(f"<p>{html.escape(text)}</p>") == text


@given(words, st.integers(1, 3))
def test_text_that_was_encoded_many_times_comes_back(said: list[str], times: int) -> None:
    text = " ".join(said).replace("&", "and").replace("<", "less") + " & more"
    encoded = text
    for _ in range(times):
        encoded = html.escape(encoded)
    assert clean(encoded) == text


@given(st.lists(words.map(" ".join), min_size=1), st.sampled_from(["p", "div", "li", "h2", "blockquote"]))
def test_paragraphs_are_lines(paragraphs: list[str], tag: str) -> None:
    texts = [text.replace("&", "and") for text in paragraphs]
    markup = "".join(f"<{tag} class='x'>{html.escape(text)}</{tag}>\n" for text in texts)
    assert clean(markup) == "\n".join(texts)


scraps = st.sampled_from([*"<>/pb ='&;x\n", '"', "amp", "!--", "-->", "script"])


@given(st.lists(scraps).map("".join))
def test_no_soup_raises_and_no_white_space_is_left_over(soup: str) -> None:
    text = clean(soup)
    if text is not soup:
        assert text == "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())


@pytest.mark.parametrize(
    "soup",
    ["<div>", "<", "&", "&amp;", "<!--", "<p ", '<a href="', "<!", "<![CDATA[", "</p", "<x-", "<script>",
     "<p hidden ", "<p>\n "],
)  # fmt: skip
def test_no_soup_takes_long(soup: str) -> None:
    text = soup * (400_000 // len(soup)) + "x"
    begun = time.process_time()
    clean(text)
    clean("<p " + " " * 400_000)
    assert time.process_time() - begun < 5
