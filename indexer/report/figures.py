"""The report's figures, drawn by Matplotlib.

Every figure is drawn twice, for a wide page and for a narrow one, so that its text is read at its own size on both;
the page shows one of them. `name` is a figure's on the page, and what the hover texts of its marks are kept under.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from indexer.report.contents import SHORT_MODEL
from indexer.report.svg import COLOURS, STYLE, to_svg
from indexer.report.wording import duration, mebibytes, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from numpy.typing import NDArray

    Draw = Callable[[Figure, bool], None]
    Curve = Sequence[Sequence[float]]

WIDE, NARROW = 680, 340
_MAP = 660
_MOST_BARS = 400
_BINS_PER_DOUBLING = 4


def draw_both(name: str, description: str, height: int, draw: Draw, narrow_height: int | None = None) -> Markup:
    """The figure for a wide and for a narrow page, there perhaps taller; `draw` is told whether it is the wide one."""
    wide = _draw(f"{name}-wide", description, (WIDE, height), lambda figure: draw(figure, True))
    narrow = _draw(f"{name}-narrow", description, (NARROW, narrow_height or height), lambda figure: draw(figure, False))
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(wide, narrow)


def _draw(name: str, description: str, size: tuple[int, int], draw: Callable[[Figure], None]) -> Markup:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Text stays text: who reads the page has fonts of his own.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        draw(figure)
        return to_svg(figure, name, description)


# --- lengths ---------------------------------------------------------------------------------------------------------


def lengths(tokens: NDArray[np.int64], max_tokens: int) -> Markup:
    """How long articles are, (n,), on a logarithmic scale, against what models read."""
    longest = max(int(tokens.max()), max_tokens, 2 * SHORT_MODEL)
    shortest = min(max(int(tokens.min()), 1), SHORT_MODEL // 2)  # so that both limits stand within the axes
    first = int(np.floor(_BINS_PER_DOUBLING * np.log2(shortest)))
    last = int(np.floor(_BINS_PER_DOUBLING * np.log2(longest))) + 1
    edges = 2 ** (np.arange(first, last + 1) / _BINS_PER_DOUBLING)
    counts, _ = np.histogram(np.maximum(tokens, 1), edges)
    read_by = np.searchsorted([SHORT_MODEL, max_tokens], edges[1:], side="left")  # 0: any model, 1: ours, 2: none
    colours = np.array([COLOURS["c1"], COLOURS["c2"], COLOURS["c4"]])[read_by]

    def draw(figure: Figure, wide: bool) -> None:
        axes = _axes_of_articles(figure)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, edgecolor=COLOURS["surface"])
        axes.set_xscale("log", base=2)
        _ticks(axes, [2**power for power in range(0, 40, 1 if wide else 3) if edges[0] <= 2**power <= edges[-1]])
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.22 * max(counts.max(), 1))
        axes.set_xlabel("tokens of an article")
        for limit in sorted({SHORT_MODEL, max_tokens}):
            axes.axvline(limit, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=1.2)
            axes.text(
                limit, 0.99, f"{limit:,} ", transform=axes.get_xaxis_transform(), ha="right", va="top", weight="bold"
            )

    return draw_both("lengths", "Histogram of the articles' lengths in tokens", 270, draw)


# --- clusters --------------------------------------------------------------------------------------------------------


def cluster_sizes(sizes: NDArray[np.int64], outliers: NDArray[np.int64], colours: Sequence[str]) -> Markup:
    """Articles of each cluster, (clusters,), the largest first, their outliers on top in a lighter tone."""

    def draw(figure: Figure, _wide: bool) -> None:
        axes = _axes_of_articles(figure)
        if len(sizes) > _MOST_BARS:
            axes.fill_between(np.arange(len(sizes)), sizes, color=COLOURS["c1"], linewidth=0)
        else:
            _columns(axes, np.zeros_like(sizes), sizes - outliers, colours, "tip-sizes")
            _columns(axes, sizes - outliers, sizes, colours, "tip-sizes-outliers")
        axes.set_xlim(-0.7, len(sizes) - 0.3)
        axes.set_ylim(0, 1.05 * max(int(sizes.max()), 1))
        axes.set_xticks([])
        axes.set_xlabel("clusters, the largest first")
        median = float(np.median(sizes))
        axes.axhline(median, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=1.2)
        axes.text(len(sizes) - 0.4, median, f"median {median:,.10g}", ha="right", va="bottom", weight="bold")

    return draw_both("sizes", "Number of articles in each cluster, the largest first", 240, draw)


def _columns(axes: Axes, bottoms: NDArray[np.int64], tops: NDArray[np.int64], colours: Sequence[str], gid: str) -> None:
    """A bar for each cluster, (clusters,), in the figure's one collection that has hover texts."""
    from matplotlib.collections import PolyCollection

    left = np.arange(len(tops)) - 0.4
    corners = np.stack([left, bottoms, left, tops, left + 0.8, tops, left + 0.8, bottoms], 1).reshape(-1, 4, 2)
    fills = [COLOURS[colour] for colour in colours]
    alpha = 0.4 if bottoms.any() else 1.0
    bars = PolyCollection(list(corners), facecolors=fills, linewidths=0, alpha=alpha, gid=gid)
    axes.add_collection(bars, autolim=False)


def corpus_map(
    places: NDArray[np.float32], colours: Sequence[str], labels: Sequence[tuple[str, float, float]]
) -> Markup:
    """Articles as points, (n, 2), each of a colour's name; `labels` are (text, x, y), the most important first.

    Labels that find no room are left out. The narrow page shows the same picture without labels.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_axis_off()
        size = float(np.clip(0.34 * _MAP / np.sqrt(len(places)), 4.2, 9))
        fills = [COLOURS[colour] for colour in colours]
        axes.scatter(places[:, 0], places[:, 1], s=size**2, c=fills, linewidths=0, gid="tip-map")
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.03)
        _place_labels(figure, axes, labels)

    picture = _draw("map", "Map of the corpus: each point is an article, near ones are alike", (_MAP, _MAP), draw)
    return Markup('<div class="map">{}</div>').format(picture)


def _place_labels(figure: Figure, axes: Axes, labels: Sequence[tuple[str, float, float]]) -> None:
    """Writes each label at its place, or a little above or below it, where no other one is."""
    figure.draw_without_rendering()  # the limits of the axes are known after it
    frame = axes.get_window_extent().padded(-2)
    taken: list[Bbox] = []
    for text, x, y in labels:
        written = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", ha="center", va="center", size=13, weight="bold"
        )
        for shift in (0, 18, -18, 36, -36, 54, -54):
            written.xyann = (0, shift)
            box = written.get_window_extent().padded(3)
            inside = box.x0 > frame.x0 and box.x1 < frame.x1 and box.y0 > frame.y0 and box.y1 < frame.y1
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
        else:
            written.remove()


# --- search ----------------------------------------------------------------------------------------------------------


def recall_curve(curve: Curve, chosen: int, target: float | None) -> Markup:
    """Recall at 10 against lists visited, and below it a search's time.

    curve: (lists, recall, milliseconds), by lists.
    """

    def draw(figure: Figure, wide: bool) -> None:
        recalls, times = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        _recalls(recalls, curve, chosen, target)
        label, title = f"{_at(curve, chosen, 2):.2g} ms", "milliseconds of a search"
        _curve(times, curve, chosen, 2, label=label, title=title)
        times.set_ylim(0, 1.35 * max(point[2] for point in curve))
        lists = [point[0] for point in curve]
        times.set_xscale("log", base=2)
        _ticks(times, _apart(lists, WIDE if wide else NARROW))
        times.set_xlim(min(lists) / 1.25, max(lists) * 1.25)
        times.set_xlabel("lists that a search visits")

    return draw_both("recall", "Recall at 10 against the number of lists visited", 400, draw)


def _apart(lists: Sequence[float], width: int) -> list[float]:
    """Those of which the numbers have room on a logarithmic axis that is so wide, the last among them."""
    room = (8 * len(f"{lists[-1]:,.0f}") + 6) / (width - 60)
    least = room * np.log2(1.25**2 * lists[-1] / lists[0])
    shown = [lists[-1]]
    for each in reversed(lists):
        if np.log2(shown[-1] / each) >= least:
            shown.append(each)
    return shown


def _at(curve: Curve, lists: int, column: int) -> float:
    """A value of the curve's point that has so many lists, else of its last."""
    return next((point[column] for point in curve if point[0] == lists), curve[-1][column])


def _recalls(axes: Axes, curve: Curve, chosen: int, target: float | None) -> None:
    _curve(axes, curve, chosen, 1, label=f"{percent(_at(curve, chosen, 1))} in {chosen:,}", title="recall at 10")
    room = 1.02 - min([target or 1.0, *(point[1] for point in curve)])
    lowest = max(0.0, 1.02 - 1.25 * room)
    axes.set_ylim(lowest, 1 + 0.2 * room)
    axes.set_yticks([tick for tick in axes.get_yticks() if lowest <= tick <= 1])
    if target is not None:
        axes.axhline(target, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=1.2)


def _curve(axes: Axes, curve: Curve, chosen: int, column: int, *, label: str, title: str) -> None:
    """One column of the curve, and a label at the chosen point, on the side where the curve is not: recall rises."""
    _dress(axes, title)
    x, y = [point[0] for point in curve], [point[column] for point in curve]
    axes.plot(x, y, color=COLOURS["c1"], marker="o", markersize=4, linewidth=2)
    place = x.index(chosen) if chosen in x else len(x) - 1
    axes.plot([x[place]], [y[place]], marker="o", markersize=11, color=COLOURS["c2"])
    right = place > (len(x) - 1) / 2
    below = column == 1 and not right
    axes.annotate(
        label,
        (x[place], y[place]),
        xytext=(4 if right else -4, -12 if below else 10),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top" if below else "bottom",
        weight="bold",
    )


# --- phases ----------------------------------------------------------------------------------------------------------


def phases(seconds: Mapping[str, float], memory_mib: Mapping[str, float]) -> Markup:
    """Time of each phase, and beside it (below it on a narrow page) its peak of memory where that was measured."""
    panels: list[tuple[str, Mapping[str, float], Callable[[float], str]]] = [("time", seconds, duration)]
    if memory_mib:
        panels.append(("peak memory", {name: memory_mib.get(name, 0.0) for name in seconds}, mebibytes))

    def draw(figure: Figure, wide: bool) -> None:
        shape = (1, len(panels)) if wide else (len(panels), 1)
        every = figure.subplots(*shape, squeeze=False).ravel()
        for axes, (title, values, say) in zip(every, panels, strict=True):
            _bars(axes, values, say)
            axes.set_title(title, loc="left", size=12, color=COLOURS["muted"])

    height = 26 * len(seconds) + 40
    return draw_both("phases", "Time and peak memory of each phase", height, draw, height * len(panels))


def _bars(axes: Axes, values: Mapping[str, float], say: Callable[[float], str]) -> None:
    places = np.arange(len(values))
    axes.barh(places, list(values.values()), height=0.66, color=COLOURS["c1"])
    for place, value in zip(places, values.values(), strict=True):
        axes.annotate(say(value), (value, place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.42 * max([*values.values(), 1e-9]))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


# --- what all have in common -----------------------------------------------------------------------------------------


def _axes_of_articles(figure: Figure) -> Axes:
    """Axes of what is counted: there is no half of an article to mark."""
    axes = figure.subplots()
    _dress(axes, "articles")
    axes.locator_params(axis="y", integer=True)
    return axes


def _dress(axes: Axes, title: str) -> None:
    axes.grid(axis="y")
    axes.set_title(title, loc="left", size=12, color=COLOURS["muted"])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axes.locator_params(axis="y", nbins=5)


def _ticks(axes: Axes, places: Sequence[float]) -> None:
    """Exactly these on the x axis, written as numbers."""
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
    axes.xaxis.minorticks_off()
