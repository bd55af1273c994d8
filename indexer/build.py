"""From files of articles to a published generation.

    plan      nothing on disk                   the files exist, the model loads, the parameters make sense
    read      corpus.db, the rejects            every usable article, by id, under what came and went online
    embed     vectors.npy, mean.npy, lengths    every distinct text once, from the cache or computed, in index space
    train     clustering.npz                    centroids, and the cluster of every row
    add       index.faiss                       every row in the list of its nearest centroid
    describe  clusters.json, articles.arrow     stories, names, outliers, topics, labels
    measure   nothing on disk                   recall by lists visited; how many a search shall visit
    publish   report.html, manifest.json        gates and checksums; the draft becomes a generation, and CURRENT

All of it is written in a draft folder of the store, whose journal names the phases that are done (`indexer.draft`): a
build that is killed goes on where it stood, and one that fails leaves the current generation as it was.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.filesize import decimal

from coldframe.articles import ArticleRow, Articles, excerpt, write_articles
from coldframe.clusters import write_clusters
from coldframe.errors import InvalidArgument
from coldframe.generation import ARTICLES, CLUSTERS, INDEX, VECTORS
from coldframe.live import LiveStore
from coldframe.recipe import Placement, Recipe
from coldframe.storage import release
from coldframe.text import article_text
from indexer.cache import Cache
from indexer.calibrate import calibrate
from indexer.choose import choose
from indexer.describe import describe
from indexer.draft import CLUSTERING, LENGTHS, SPOOL, Build, Clustering, begin
from indexer.embed import Lengths, Rows, adopt, compute, reuse
from indexer.estimate import require_room
from indexer.fold import fold
from indexer.lineage import Naming, Previous, name_clusters, next_number
from indexer.measure import measure
from indexer.plan import BuildConfig, plan
from indexer.publish import built_before, publish
from indexer.spool import Spool, fill
from indexer.stories import find_stories
from indexer.train import assign, choose_clusters, train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.clusters import ClusterTable
    from coldframe.generation import Manifest
    from indexer.draft import Record, Say
    from indexer.progress import Reporter

__all__ = ["BuildConfig", "run"]

_PLACE_ROWS = 4_096
# Characters of a corpus, half a minute's work for the smallest model, from which on some seconds of compiling pay.
_CHARS_TO_COMPILE_FOR = 4_000_000


def run(config: BuildConfig, reporter: Reporter) -> Manifest:
    """Builds a generation and publishes it; the current one's manifest where nothing has changed since it was built.

    Raises ColdframeError, and then leaves the current generation as it was. What was done is gone on with next time.
    """
    job = plan(config, reporter)
    with begin(job) as build:
        build.phase("read", read)
        if (same := built_before(build)) is not None:
            return same
        require_room(build)
        build.phase("embed", embed)
        build.phase("train", train_clusters)
        build.phase("add", add)
        build.phase("describe", describe_clusters)
        build.phase("measure", measure_index)
        return publish(build)


def read(build: Build, say: Say) -> Record:
    """Reads every file into the spool; rows that cannot be used go to the rejects file."""
    job, config = build.job, build.config
    with Spool(build.draft.path / SPOOL) as spool, LiveStore(job.live, read_only=True) as live:
        stats = fill(
            spool,
            job.reporter.reading(job.read(), job.share_read),
            config.rejects_path,
            max_reject_share=config.max_reject_share,
        )
        folded = fold(spool, live, config.corpus_as_of)
        spool.order()
        distinct, digest, articles, undated = spool.distinct(), spool.digest(), len(spool), spool.undated()
    if not articles:
        raise InvalidArgument("every article of the corpus was removed online; give one with others", field="corpus")
    config.require_enough_texts(distinct)
    say(f"{articles:,} articles, {distinct:,} distinct texts")
    if folded.told:
        say(folded.told)
    if undated:
        say(f"{undated:,} without a date that could be read")
    if stats.rejected:
        say(f"{stats.rejected:,} rows rejected, see {stats.rejects_path}")
    counts = {"articles": articles, "rejected": stats.rejected, "distinct": distinct}
    return counts | {"digest": digest, "live": asdict(folded)}


def embed(build: Build, say: Say) -> Record:
    """Gives every row its vector, from the cache or computed, and brings them all into the index's space."""
    job = build.job
    with build.spool() as spool, Cache(job.cache, job.space, job.reporter.note) as cache:
        with LiveStore(job.live, read_only=True) as live:
            adopted = adopt(live, cache, job.space, spool)
        vectors = _preallocated(build.out / VECTORS, len(spool), job.encoder.dim)
        rows = Rows(spool, vectors, Lengths.of(len(spool)))
        missing = reuse(cache, rows)
        # Asked of the whole corpus: a job that is killed and begun again has the same vectors, to the bit.
        if missing.chars and spool.chars() >= _CHARS_TO_COMPILE_FOR:
            job.encoder.compile()
        with job.reporter.embedding(missing.rows, missing.chars) as progress:
            computed = compute(job.encoder, missing, cache, rows, progress)
        reused = spool.distinct() - computed.texts
    np.savez(build.draft.path / LENGTHS, seen=rows.lengths.seen, used=rows.lengths.used)
    place(vectors, job.encoder.recipe, build.out)
    cut = int((rows.lengths.used < rows.lengths.seen).sum())
    say(f"{computed.tokens:,} tokens of {computed.texts:,} texts" + (f", {reused:,} from the cache" if reused else ""))
    if adopted:
        say(f"{adopted:,} as a server embedded them")
    if cut:
        say(f"the ends of {cut:,} article(s) over {job.encoder.max_tokens:,} tokens were not read")
    return {
        "computed": computed.texts,
        "reused": reused,
        "tokens": missing.known_tokens + computed.tokens,
        "truncated": cut,
    }


def _preallocated(path: Path, rows: int, dim: int) -> NDArray[np.float32]:
    """An array of zeros on the disk, (rows, dim), with room for all of it: a full disk is an error now, and no signal
    (SIGBUS) at whichever row it is found out.
    """
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return vectors


def place(vectors: NDArray[np.float32], recipe: Recipe, out: Path) -> None:
    """Onto the unit sphere, the corpus mean removed where the recipe says so; in place, (n, dim)."""
    placement = Placement.fit(recipe, vectors)
    placement.save(out)
    for start in range(0, len(vectors), _PLACE_ROWS):
        vectors[start : start + _PLACE_ROWS] = placement(vectors[start : start + _PLACE_ROWS])
        release(vectors)


def train_clusters(build: Build, say: Say) -> Record:
    """Finds and numbers the clusters, beginning at those of the previous generation."""
    config, vectors = build.config, build.vectors()
    start = build.inherited()
    previous = len(start) if start is not None else None
    wanted = choose_clusters(build.record("read")["distinct"], config.clusters, previous)
    centroids = train(vectors, wanted, config.seed, start)
    clustering = Clustering(*assign(vectors, centroids))
    np.savez(build.draft.path / CLUSTERING, **vars(clustering))
    found = len(clustering.centroids)
    say(f"{found:,} clusters")
    if found < wanted:
        say(f"{wanted - found} of {wanted} centroids drew no article and were dropped")
    return {"clusters": found, "empty": wanted - found}


def add(build: Build, say: Say) -> Record:
    """Writes the inverted file, in the best storage that keeps within the budgets."""
    clustering = build.clustering()
    choice = choose(
        build.out / INDEX,
        clustering.centroids,
        build.vectors(),
        clustering.assignment,
        budgets=build.config.budgets(),
        seed=build.config.seed,
    )
    build.index()  # FAISS says nothing of a last block that found no room: an index cut short is refused here
    say(f"{choice.storage}, {decimal(choice.bytes)}")
    return {"storage": choice.storage, "considered": choice.considered}


def describe_clusters(build: Build, say: Say) -> Record:
    """Writes what people see: clusters with their names and labels, and the table of articles with their stories."""
    clustering, vectors = build.clustering(), build.vectors()
    with build.spool() as spool:
        naming = _name_clusters(build, clustering, spool.ids())
        texts = (article_text(article.title, article.content) for article in spool.articles())
        table = describe(
            vectors, clustering.assignment, clustering.similarity, texts, naming, topics=build.config.topics
        )
        write_clusters(build.out / CLUSTERS, table)
        stories, said = _find_stories(build, spool)
        write_articles(build.out / ARTICLES, _article_rows(build, spool, table, stories))
    outliers = sum(cluster.outliers for cluster in table.clusters)
    say(f"{said['stories']:,} stories, {outliers:,} outliers")
    if build.previous is not None and build.ancestor is None:
        say("all ids of clusters and topics are new: the generation before is of another model or recipe")
    return {"stories": said, "lineage": _lineage(table, naming), "outliers": outliers}


def _name_clusters(build: Build, clustering: Clustering, ids: list[str]) -> Naming:
    previous = None if build.previous is None else Previous.of(build.previous, build.inherited())
    return name_clusters(
        clustering.centroids,
        clustering.assignment,
        ids,
        previous,
        min_similarity=build.config.min_cluster_similarity,
        first_number=next_number(build.job.store),
    )


def _lineage(table: ClusterTable, naming: Naming) -> dict[str, Any]:
    """How many clusters came from where, for the manifest."""
    kinds = Counter(cluster.lineage.kind for cluster in table.clusters)
    counted = {kind: kinds[kind] for kind in ("first", "kept", "new", "split", "merged")}
    return counted | {"vanished": len(table.vanished), "survived": naming.survived}


def _find_stories(build: Build, spool: Spool) -> tuple[NDArray[np.int32], Record]:
    """Each row's story, (n,), and how many there are."""
    config, digests, index = build.config, spool.digests(), build.index()
    about = index, spool.seconds(), digests, spool.text
    window, threshold = config.story_window_days, config.story_similarity
    if threshold is None:
        threshold = calibrate(*about, window_days=window, seed=config.seed).threshold
    stories = find_stories(*about, threshold=threshold, window_days=window)
    told, duplicates = len(np.unique(stories)), len(digests) - spool.distinct()
    near = len(digests) - told - duplicates
    return stories, {"stories": told, "duplicates": duplicates, "near_duplicates": near, "similarity": threshold}


def _article_rows(build: Build, spool: Spool, table: ClusterTable, stories: NDArray[np.int32]) -> Iterator[ArticleRow]:
    clustering, lengths = build.clustering(), build.lengths()
    for row, article in enumerate(spool.articles()):
        cluster, similarity = int(clustering.assignment[row]), float(clustering.similarity[row])
        yield ArticleRow(
            id=article.id,
            title=article.title,
            excerpt=excerpt(article.content),
            published_at=article.published_at,
            attributes=article.attributes,
            cluster=cluster,
            tokens_seen=int(lengths.seen[row]),
            tokens_used=int(lengths.used[row]),
            text_digest=article.digest,
            story=int(stories[row]),
            similarity=similarity,
            outlier=similarity < table.clusters[cluster].outlier_below,
        )


def measure_index(build: Build, say: Say) -> Record:
    """Chooses how many lists a balanced search visits: so many that it finds what an exact one does."""
    index, config = build.index(), build.config
    stories = Articles(build.out / ARTICLES).column("story").to_numpy()
    measured = measure(index, config.target_recall, config.seed, stories=stories)
    say(f"{measured.visited:g} of {index.clusters} lists find {measured.recall:.1%} of the 10 nearest")
    say(f"in {measured.latency_ms:.2g} ms")
    return asdict(measured)
