"""The report's colours: text is read and marks are seen by whoever sees little, or no red, green or blue."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.report.svg import COLOURS, DARK

Colour = NDArray[np.float64]
CSS = (files("indexer.report") / "templates/page.css").read_text(encoding="utf-8")
THEMES = pytest.mark.parametrize("theme", [COLOURS, DARK], ids=["light", "dark"])
MARKS = ["other", *(f"c{n}" for n in range(1, 10))]
# What who lacks one kind of cone sees of linear red, green and blue (Machado, Oliveira and Fernandes 2009, severity 1).
SIGHT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def read(word: str) -> Colour:
    return np.array([int(word[n : n + 2], 16) for n in (1, 3, 5)]) / 255


def linear(colour: Colour) -> Colour:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def contrast(one: Colour, other: Colour) -> float:
    """By WCAG 2: 1 for equal colours, 21 for black and white."""
    lights = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def lab(light: Colour) -> Colour:
    x, y, z = np.cbrt(TO_XYZ @ np.clip(light, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def in_css(pattern: str) -> float:
    found = re.search(pattern, CSS)
    assert found
    return float(found[1])


@THEMES
def test_text_is_read_on_whatever_it_stands(theme: dict[str, str]) -> None:
    page, ink, muted = (read(theme[name]) for name in ("surface", "ink", "muted"))
    pressed = in_css(r'\[aria-pressed="true"\] \{ background: color-mix\(in srgb, var\(--muted\) (\d+)%') / 100
    for text in (ink, muted):
        assert contrast(text, page) >= 4.5
        assert contrast(text, pressed * muted + (1 - pressed) * page) >= 4.5
    for sign in ("c1", "c3", "c4"):  # of links, of gates that passed, and of those that did not
        assert contrast(read(theme[sign]), page) >= 4.5


@THEMES
@pytest.mark.parametrize("name", MARKS)
def test_a_mark_stands_out_from_the_page(theme: dict[str, str], name: str) -> None:
    page, opacity = read(theme["surface"]), in_css(r"\.map use \{ fill-opacity: ([\d.]+)")
    assert contrast(opacity * read(theme[name]) + (1 - opacity) * page, page) >= 3


@THEMES
@pytest.mark.parametrize("sight", SIGHT)
def test_no_two_colours_are_one_to_who_does_not_see_all(theme: dict[str, str], sight: str) -> None:
    seen = {name: lab(np.array(SIGHT[sight]) @ linear(read(theme[name]))) for name in MARKS}
    for one, other in itertools.combinations(MARKS, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 15, (one, other)  # one just told apart is about 2
