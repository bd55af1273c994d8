"""The end of a build: what it measured, whether that is good enough, and what its manifest says of it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe.errors import ColdframeError, CorruptGeneration, FailedPrecondition
from coldframe.generation import CorpusInfo, Manifest, ModelInfo, Parameters, verify
from coldframe.models import display_name, resolve
from indexer.drift import drift
from indexer.gates import Facts, checks, judge
from indexer.report import ReportFacts, write_report

if TYPE_CHECKING:
    from pathlib import Path

    from coldframe.generation import Generation
    from indexer.draft import Build


def built_before(build: Build) -> Manifest | None:
    """The manifest of a generation that was built of the same already, and no draft is left; None: go on and build.

    Raises FailedPrecondition where that was kept back, unless it shall be published by force.
    """
    job = build.job
    if build.previous is not None and _is_the_same(build.previous.manifest, build):
        job.reporter.note(f"nothing has changed since {build.previous.name}; no generation was made")
        job.store.discard()
        return build.previous.manifest
    held = _held_before(build)
    if held is None:
        return None
    if not build.config.force:
        job.store.discard()
        raise _kept_back(held, build.job.store.path)
    try:
        verify(job.store.directory(held.name))
    except CorruptGeneration as error:  # to refuse it for good would leave nothing to do but to remove it by hand
        job.reporter.note(f"{held.name} was built before, and is built anew: {error.message}")
        return None
    job.store.discard()
    job.store.activate(held.name)
    job.reporter.note(f"{held.name} was built before, and is published now")
    return held


def _is_the_same(manifest: Manifest, build: Build) -> bool:
    """Also to servers, who lay over it every change after its watermark, those that the corpus is newer than, too."""
    read = build.record("read")
    same = manifest.corpus.digest == read["digest"] and manifest.requested == build.job.requested()
    return same and read["live"].get("yielded_last", 0) <= manifest.watermark


def _held_before(build: Build) -> Manifest | None:
    """A generation that was kept back, for the same reasons that would keep this one back."""
    store, previous = build.job.store, build.previous_name
    limits = asdict(build.config.limits)
    for name in reversed(store.names()):
        try:
            manifest = Manifest.read(store.directory(name))
        except ColdframeError:
            continue
        judged = manifest.report.get("previous") == previous and manifest.report.get("limits") == limits
        if manifest.held and judged and _is_the_same(manifest, build):
            return manifest
    return None


def _kept_back(manifest: Manifest, store: Path) -> FailedPrecondition:
    return FailedPrecondition(
        f"{manifest.name} was built and kept, and not published: {'; '.join(manifest.held)}. Look at it, and publish "
        f"it all the same with: python -m indexer activate {manifest.name} --force --store {shlex.quote(str(store))}"
    )


def publish(build: Build) -> Manifest:
    """Seals the draft with its report and its manifest, and makes it the current generation if it passes the gates.

    Raises FailedPrecondition for one that is worse than the limits allow: it is kept among the generations, with the
    reasons in its manifest, and the current one stays.
    """
    job, store = build.job, build.job.store
    with store.saving(), job.reporter.phase("publish") as say:
        manifest = seal(build)
        if manifest.held:
            store.keep(build.out, manifest.name)
            store.discard()
            raise _kept_back(manifest, store.path)
        store.publish(build.out, manifest.name)
        say(manifest.name)
        for breach in manifest.report["gates"]:
            say(f"published by force: {breach['message']}")
    return manifest


def seal(build: Build) -> Manifest:
    """Writes report.html and manifest.json into the draft; the manifest says in `held` why it must not be published."""
    job, config, encoder = build.job, build.config, build.job.encoder
    model = ModelInfo(
        display_name(config.model), encoder.fingerprint, encoder.recipe.name, encoder.dim, encoder.max_tokens
    )
    corpus, parameters, report = corpus_info(build), parameters_of(build), report_of(build)
    said = ReportFacts(model, corpus, parameters, encoder.precision, report, previous=build.previous_name)
    write_report(build.out, said)
    return Manifest.seal(
        build.out,
        model=model,
        corpus=corpus,
        parameters=parameters,
        report=report,
        source=resolve(config.model),
        precision=encoder.precision,
        requested=job.requested(),
        watermark=build.record("read")["live"]["watermark"],
        held=[] if config.force else [breach["message"] for breach in report["gates"]],
        after=job.store.names(),
    )


def corpus_info(build: Build) -> CorpusInfo:
    """What was indexed."""
    read, embed = build.record("read"), build.record("embed")
    return CorpusInfo(
        digest=read["digest"],
        articles=read["articles"],
        distinct_texts=read["distinct"],
        rejected=read["rejected"],
        truncated=embed["truncated"],
        tokens=embed["tokens"],
    )


def parameters_of(build: Build) -> Parameters:
    """What decided the form of the index."""
    config = build.config
    return Parameters(
        clusters=build.record("train")["clusters"],
        seed=config.seed,
        probes=build.record("measure")["probes"],
        storage=build.record("add")["storage"],
        story_similarity=build.record("describe")["stories"]["similarity"],
        story_window_days=config.story_window_days,
        min_cluster_similarity=config.min_cluster_similarity,
        margin=build.record("measure").get("margin"),  # a build may go on that an earlier Coldframe began
    )


def facts_of(build: Build) -> Facts:
    """What the gates look at."""
    ancestor, vectors = build.ancestor, build.vectors()
    before = None if build.previous is None else build.previous.manifest.corpus.articles
    return Facts(
        articles=len(vectors),
        recall=build.record("measure")["recall"],
        target_recall=build.config.target_recall,
        sizes=np.bincount(build.clustering().assignment).tolist(),
        empty=build.record("train")["empty"],
        previous_articles=before,
        survived=build.record("describe")["lineage"]["survived"],
        drift=None if ancestor is None else _drift(build, ancestor),
    )


def _drift(build: Build, ancestor: Generation) -> float | None:
    placements = build.placement(), ancestor.placement
    return drift(build.vectors(), ancestor.index.vectors, placements, seed=build.config.seed)


def report_of(build: Build) -> dict[str, Any]:
    """What was measured, for the manifest and the picture."""
    measure, describe, embed = (build.record(phase) for phase in ("measure", "describe", "embed"))
    config, facts = build.config, facts_of(build)
    told = ("gate", "measured", "limit", "message")
    return {
        "target_recall": config.target_recall,
        "recall_at_10": measure["recall"],
        "latency_ms": measure["latency_ms"],
        "recall_by_probes": measure["curve"],
        "lists_visited": measure.get("visited"),
        "cluster_sizes": {
            "smallest": min(facts.sizes),
            "median": float(np.median(facts.sizes)),
            "largest": max(facts.sizes),
        },
        "storages": build.record("add")["considered"],
        "stories": describe["stories"],
        "lineage": describe["lineage"],
        "outliers": describe["outliers"],
        "drift": facts.drift,
        "live": build.record("read")["live"],
        "cache": {"reused": embed["reused"], "computed": embed["computed"]},
        "limits": asdict(config.limits),
        "gates": [{name: getattr(breach, name) for name in told} for breach in judge(facts, config.limits)],
        "checks": [asdict(check) for check in checks(facts, config.limits)],
        "forced": config.force,
        "previous": build.previous_name,
        "seconds": build.draft.seconds,
        "peak_memory_mib": build.draft.peak_memory_mib,
    }
