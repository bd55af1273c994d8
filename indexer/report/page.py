"""The page: sections into the template, and the file on disk."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from coldframe.generation import REPORT
from indexer.report import sections
from indexer.report.contents import Contents, ReportFacts
from indexer.report.svg import COLOURS, DARK
from indexer.report.wording import count, duration, percent

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment


def write_report(out: Path, facts: ReportFacts) -> None:
    """Writes out/report.html from the articles, clusters and vectors in `out`, a generation or a draft of one.

    One file without references to others: it looks the same from a disk without a network. Raises CorruptGeneration
    where a file cannot be read.
    """
    (out / REPORT).write_text(render(out, facts), encoding="utf-8")


def write_report_of(directory: Path, path: Path) -> None:
    """Writes the report of a generation that was sealed, anew, to any path; its folder stays as it is."""
    from coldframe.generation import Manifest

    path.write_text(render(directory, ReportFacts.of(Manifest.read(directory))), encoding="utf-8")


def render(directory: Path, facts: ReportFacts) -> str:
    """The page's HTML; of the same files and facts the same page."""
    contents = Contents(directory, facts)
    environment = _environment()
    script = _source(environment, "page.js")
    made = {
        "map": sections.corpus_map(contents),
        "clusters": sections.clusters(contents),
        "changes": sections.changes(contents),
        "lengths": sections.lengths(contents),
        "stories": sections.stories(contents),
        "search": sections.search(contents),
        "work": sections.work(contents),
    }
    return environment.get_template("page.html").render(
        made,
        facts=facts,
        period=contents.period(),
        gates=facts.report.get("gates"),
        checks=facts.report.get("checks"),
        forced=facts.report.get("forced", False),
        tips=_tips(contents, made),
        colours=COLOURS,
        dark=DARK,
        style=_source(environment, "page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _tips(contents: Contents, made: dict[str, Any]) -> dict[str, Any]:
    """The hover texts: of each mark its text, its cluster's number and, on the map, its group's."""
    sizes = made["clusters"]
    bars = [[text, cluster] for text, cluster in zip(sizes["tips"], sizes["tip_clusters"], strict=True)]
    return {
        "clusters": [[cluster.id, cluster.label] for cluster in contents.table.clusters],
        "marks": {"map": made["map"].get("tips", []), "sizes": bars, "sizes-outliers": bars},
    }


@cache  # with the template compiled
def _environment() -> Environment:
    """Every text that comes from outside is escaped: titles are whatever a feed delivers."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("indexer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "duration": duration, "percent": percent}
    return environment


def _source(environment: Environment, name: str) -> Any:
    """A file beside the template, as it is."""
    from markupsafe import Markup

    assert environment.loader is not None, "it was made with one"
    return Markup(environment.loader.get_source(environment, name)[0])  # noqa: S704  # our own file
