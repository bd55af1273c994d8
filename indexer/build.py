"""From files of articles to a published generation.

    plan      nothing on disk                   the files exist, the model loads, the parameters make sense
    read      scratch/corpus.db, the rejects    every usable article, by id
    embed     vectors.npy                       every distinct text once
    train     mean.npy                          unit vectors in the index's space, and centroids
    add       index.faiss                       every row in the list of its nearest centroid
    describe  clusters.json, articles.arrow     labels, medoids, representatives
    measure   nothing on disk                   recall by lists visited; how many a search shall visit
    publish   manifest.json, CURRENT            checksums, and the draft becomes a generation

All of it is written in a draft folder of the store; a build that fails leaves the store as it was.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from coldframe.articles import ArticleRow, excerpt, write_articles
from coldframe.clusters import Cluster, write_clusters
from coldframe.encoder import Device, Encoder, Precision
from coldframe.errors import InvalidArgument
from coldframe.generation import ARTICLES, CLUSTERS, INDEX, MEAN, VECTORS, CorpusInfo, Manifest, ModelInfo, Parameters
from coldframe.index import ClusterIndex
from coldframe.models import display_name, resolve
from coldframe.recipe import Placement, Recipe
from coldframe.store import Store
from coldframe.text import article_text
from indexer.corpus import Columns, expand
from indexer.corpus import read as read_corpus
from indexer.describe import describe
from indexer.embed import Embedded, embed
from indexer.measure import Measured, measure
from indexer.spool import ReadStats, Spool, fill
from indexer.train import assign, default_clusters, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from indexer.progress import Reporter

_PLACE_ROWS = 65_536
_MOST_SEED = 2**31 - 1  # FAISS keeps it in a C int


@dataclass(frozen=True)
class BuildConfig:
    """What a person chooses of a build."""

    corpus: Sequence[str]
    store: Path
    model: str = "minilm"
    recipe: str | None = None
    precision: Precision = "auto"
    device: Device = "auto"
    clusters: int | None = None
    seed: int = 0
    target_recall: float = 0.99
    columns: Columns = field(default_factory=Columns)
    rejects: Path | None = None
    """None: rejects.jsonl in the store."""
    max_reject_share: float = 0.05


@dataclass(frozen=True)
class Job:
    """What every phase may look at."""

    config: BuildConfig
    sources: list[Path]
    encoder: Encoder
    reporter: Reporter


@dataclass(frozen=True)
class Clustering:
    """Centroids, (clusters, dim), and each row's cluster and similarity to its centroid, (n,)."""

    centroids: NDArray[np.float32]
    assignment: NDArray[np.int64]
    similarity: NDArray[np.float32]


def run(config: BuildConfig, reporter: Reporter) -> Manifest:
    """Builds and publishes a generation. Raises ColdframeError, and then leaves the store as it was."""
    job = plan(config, reporter)
    store = Store(config.store)
    with store.draft() as draft:
        out = draft / "generation"
        out.mkdir()
        with Spool(draft / "corpus.db") as spool:
            stats = read(job, spool)
            vectors, embedded = embed_corpus(job, spool, out)
            clustering = train_clusters(job, vectors, spool.distinct(), out)
            index = add(job, vectors, clustering, out)
            clusters = describe_clusters(
                job, out, spool=spool, vectors=vectors, embedded=embedded, clustering=clustering
            )
            measured = measure_index(job, index)
            corpus = _corpus_info(spool, stats, embedded)
        return publish(job, store, out, corpus=corpus, clusters=clusters, measured=measured)


def plan(config: BuildConfig, reporter: Reporter) -> Job:
    """Refuses early what cannot end well."""
    with reporter.phase("plan") as say:
        if config.clusters is not None and config.clusters < 1:
            raise InvalidArgument(f"--clusters is {config.clusters}; it must be at least 1", field="clusters")
        if not 0 < config.target_recall <= 1:
            raise InvalidArgument(
                f"--target-recall is {config.target_recall}; it must be over 0 and at most 1", field="target-recall"
            )
        if not 0 <= config.seed <= _MOST_SEED:
            raise InvalidArgument(f"--seed is {config.seed}; it must be 0 to {_MOST_SEED}", field="seed")
        sources = expand(config.corpus)
        encoder = Encoder.load(config.model, config.recipe, config.precision, config.device)
        encoder.tokenize(["a model of weights alone is refused here"])
        say(f"{len(sources)} file(s), {encoder.name}, recipe {encoder.recipe.name}, {encoder.precision}")
    return Job(config, sources, encoder, reporter)


def read(job: Job, spool: Spool) -> ReadStats:
    """Reads every file into the spool; rows that cannot be used go to the rejects file."""
    config = job.config
    with job.reporter.phase("read") as say:
        stats = fill(
            spool,
            read_corpus(job.sources, config.columns),
            config.rejects or config.store / "rejects.jsonl",
            max_reject_share=config.max_reject_share,
        )
        say(f"{stats.kept:,} articles, {spool.distinct():,} distinct texts")
        if stats.rejected:
            say(f"{stats.rejected:,} rows rejected, see {stats.rejects_path}")
        if config.clusters is not None and config.clusters > spool.distinct():
            raise InvalidArgument(
                f"--clusters is {config.clusters}, and the corpus has {spool.distinct()} distinct texts; ask for at "
                f"most as many clusters, or leave the number to the build",
                field="clusters",
            )
    return stats


def embed_corpus(job: Job, spool: Spool, out: Path) -> tuple[NDArray[np.float32], Embedded]:
    """The encoder's vectors by row, (n, dim), in a memory-mapped file; not yet in the index's space."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, article in enumerate(spool.articles()):
        rows[article.digest].append(row)
    vectors = np.lib.format.open_memmap(out / VECTORS, mode="w+", dtype=np.float32, shape=(len(spool), job.encoder.dim))
    with job.reporter.phase("embed") as say, job.reporter.embedding(len(spool), spool.chars()) as progress:
        embedded = embed(job.encoder, spool, rows, vectors, progress)
        say(f"{embedded.computed:,} tokens")
        cut = int((embedded.tokens_used < embedded.tokens_seen).sum())
        if cut:
            say(f"the ends of {cut:,} article(s) over {job.encoder.max_tokens:,} tokens were not read")
    return vectors, embedded


def train_clusters(job: Job, vectors: NDArray[np.float32], distinct: int, out: Path) -> Clustering:
    """Brings the vectors into the index's space, in place, and finds and numbers the clusters."""
    with job.reporter.phase("train") as say:
        place(vectors, job.encoder.recipe, out)
        wanted = job.config.clusters or default_clusters(distinct)
        centroids = train(vectors, wanted, job.config.seed)
        clustering = Clustering(*assign(vectors, centroids))
        say(f"{len(clustering.centroids):,} clusters")
        if len(clustering.centroids) < wanted:
            say(f"{wanted - len(clustering.centroids)} of {wanted} centroids drew no article and were dropped")
    return clustering


def place(vectors: NDArray[np.float32], recipe: Recipe, out: Path) -> None:
    """Onto the unit sphere, the corpus mean removed where the recipe says so; in place, (n, dim)."""
    placement = Placement.fit(recipe, vectors)
    if placement.mean is not None:
        np.save(out / MEAN, placement.mean)
    for start in range(0, len(vectors), _PLACE_ROWS):
        vectors[start : start + _PLACE_ROWS] = placement(vectors[start : start + _PLACE_ROWS])


def add(job: Job, vectors: NDArray[np.float32], clustering: Clustering, out: Path) -> ClusterIndex:
    """Writes the inverted file."""
    with job.reporter.phase("add"):
        index = ClusterIndex.build(clustering.centroids, vectors, clustering.assignment)
        index.write(out / INDEX)
    return index


def describe_clusters(
    job: Job, out: Path, *, spool: Spool, vectors: NDArray[np.float32], embedded: Embedded, clustering: Clustering
) -> list[Cluster]:
    """Writes what people see: clusters with labels, and the table of articles."""
    with job.reporter.phase("describe"):
        texts = (article_text(article.title, article.content) for article in spool.articles())
        clusters = describe(vectors, clustering.assignment, clustering.similarity, texts)
        write_clusters(out / CLUSTERS, clusters)
        write_articles(out / ARTICLES, _article_rows(spool, clustering.assignment, embedded))
    return clusters


def _article_rows(spool: Spool, assignment: NDArray[np.int64], embedded: Embedded) -> Iterator[ArticleRow]:
    for row, article in enumerate(spool.articles()):
        yield ArticleRow(
            id=article.id,
            title=article.title,
            excerpt=excerpt(article.content),
            published_at=article.published_at,
            attributes=article.attributes,
            cluster=int(assignment[row]),
            tokens_seen=int(embedded.tokens_seen[row]),
            tokens_used=int(embedded.tokens_used[row]),
            text_digest=article.digest,
        )


def measure_index(job: Job, index: ClusterIndex) -> Measured:
    """Chooses how many lists a balanced search visits."""
    with job.reporter.phase("measure") as say:
        measured = measure(index, job.config.target_recall, job.config.seed)
        say(f"{measured.probes} of {index.clusters} lists find {measured.recall:.1%} of the 10 nearest")
    return measured


def publish(
    job: Job, store: Store, out: Path, *, corpus: CorpusInfo, clusters: list[Cluster], measured: Measured
) -> Manifest:
    """Seals the draft with its manifest and makes it the store's current generation."""
    encoder, config = job.encoder, job.config
    with job.reporter.phase("publish") as say:
        model = ModelInfo(
            display_name(config.model), encoder.fingerprint, encoder.recipe.name, encoder.dim, encoder.max_tokens
        )
        parameters = Parameters(len(clusters), config.seed, measured.probes)
        sizes = np.array([cluster.size for cluster in clusters])
        report: dict[str, Any] = measured.report(sizes) | {"seconds": dict(job.reporter.seconds)}
        manifest = Manifest.seal(
            out,
            model=model,
            corpus=corpus,
            parameters=parameters,
            report=report,
            source=resolve(config.model),
            precision=encoder.precision,
        )
        store.publish(out, manifest.name)
        say(manifest.name)
    return manifest


def _corpus_info(spool: Spool, stats: ReadStats, embedded: Embedded) -> CorpusInfo:
    return CorpusInfo(
        digest=spool.digest(),
        articles=len(spool),
        distinct_texts=spool.distinct(),
        rejected=stats.rejected,
        truncated=int((embedded.tokens_used < embedded.tokens_seen).sum()),
        tokens=embedded.computed,
    )
