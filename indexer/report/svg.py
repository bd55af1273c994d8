"""A Matplotlib figure as a part of an HTML page: text stays text, colours are the page's own.

Figures are drawn in the light theme's colours. Each colour becomes the CSS variable of that name, so that the page
decides between light and dark, and one pixel of the page is one point of the figure.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1d2733",
    "muted": "#5d6977",
    "line": "#d5dbe2",
    "surface": "#fefefe",
    "other": "#6d777f",
    "c1": "#123a71",
    "c2": "#c16e04",
    "c3": "#006841",
    "c4": "#bb1142",
    "c5": "#2656c7",
    "c6": "#148cb2",
    "c7": "#e344b2",
    "c8": "#562801",
    "c9": "#997d3b",
}
"""Name -> the light theme's value. Marks stand out from the page (3 to 1), and whoever sees no red, green or blue tells
them apart by how light they are."""

DARK = {
    "ink": "#e6ebf1",
    "muted": "#9eabb9",
    "line": "#36414d",
    "surface": "#161c23",
    "other": "#6b7784",
    "c1": "#259dfb",
    "c2": "#c07e1f",
    "c3": "#b5ee9c",
    "c4": "#db5b55",
    "c5": "#d3c5ff",
    "c6": "#9efff4",
    "c7": "#fc74bf",
    "c8": "#dda79e",
    "c9": "#fae467",
}

STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 12,
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1,
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["line"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.left": False,
}

HOVER = "tip-"
"""A group of marks whose gid begins so has hover texts: the page finds it under `data-tips`."""

_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element without a size of its own; `name` is unlike that of any other on the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    # The salt is what makes ids: those of two figures on one page must differ, those of two runs must not.
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        # Not `savefig`, which draws every figure once more beforehand, for an outer box that nobody asks for here.
        FigureCanvasSVG(figure).print_svg(out, metadata=_NO_METADATA)  # type: ignore[no-untyped-call]
    return Markup(_trim(out.getvalue(), description))  # noqa: S704  # Matplotlib has escaped every text


def _trim(svg: str, description: str) -> str:
    """Only what an HTML page needs of a file of its own."""
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box, "Matplotlib writes one"
    body = svg[svg.index(">", view_box.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLES.get(match[0], match[0]), body)
    # Of coordinates, and not of what is written: a tick of 0.995 is none of 0.99.
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _rounded, tag[0]), body)
    body = re.sub(
        r"<style.*?</style>| font-family: [^;\"]+;?| transform=\"rotate\(-0 [^\"]+\"", "", body, flags=re.DOTALL
    )
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: _kept_id(match[1], used), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{Markup.escape(description)}">{body.strip()}'


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def _kept_id(name: str, used: set[str]) -> str:
    """An id that something refers to; a group of marks that have hover texts says whose they are."""
    if name.startswith(HOVER):
        return f' data-tips="{name.removeprefix(HOVER)}"'
    return f' id="{name}"' if name in used else ""
