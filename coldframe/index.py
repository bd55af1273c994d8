"""The vectors of a generation behind a FAISS inverted file whose lists are the clusters.

Vectors and centroids have unit length, so that inner product is cosine similarity. FAISS proposes candidates in
fp32 or from smaller codes (`coldframe.storage`); what is answered is scored again in fp64 from the stored vectors and
ordered by score, then row. Rows are sorted by article id, so equal scores come in the order of ids, and an exact
search equals brute force to the last place.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import faiss
import numpy as np

from coldframe import storage as kinds
from coldframe.errors import CorruptGeneration

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe.rows import RowSet

# Scores that differ by less may come in either order from fp32: candidates this close to the cut are looked at too.
_FP32_NOISE = 1e-5
_SPARE_ROWS = 4
# Where codes err, or propose more than so many times as many as are wanted, fp32 tells first which of them may be.
_FEW_MORE = 1.5
# What was not proposed is taken for less near than what was, if it would have to be so many times as wrong as the codes
# are about what was proposed. Half precision is to miss nothing, and with 1.5 three questions of 200 missed something,
# where all cosines were 0.999; where articles lie as they do, 4 has hardly any asked again.
_SURE, _SURE_OF_ALL = 1.5, 4.0
_SPARE_CENTROIDS = 2
_BLOCK = 2_048
_SCAN_BLOCK = 16_384
# So few rows are scored one by one: to read them out of their lists costs more.
_FEW_ROWS = 512
# So many times as many rows and lists are visited with a filter, and as many rows proposed: a question may lie far from
# all that it keeps, where lists and codes tell less well what is nearest than for questions like the articles, by which
# they were measured.
WIDER = 4
# Of the index's rows, and of each list near the question, so many are allowed: then no wider than without a filter.
_NEARLY_ALL = 0.95
# With a margin so many times as many lists may be visited as without one. Articles need twice as many; to short texts,
# which are far from all articles, most centroids are about as near.
REACH = 8


class ClusterIndex:
    """An IVF index over `vectors`, (n, dim), of unit length; `centroids` is (clusters, dim)."""

    def __init__(self, ivf: faiss.IndexIVF, vectors: NDArray[np.float32], storage: str) -> None:
        self._ivf = ivf
        self.centroids: NDArray[np.float32] = cast(
            "faiss.IndexFlat", faiss.downcast_index(ivf.quantizer)
        ).reconstruct_n(0, ivf.nlist)
        self._quantizer = faiss.IndexFlatIP(ivf.d)
        self._quantizer.add(self.centroids)
        # Kept here: each of them is a call into FAISS, and a search asks ten times.
        self._count = int(ivf.ntotal)
        self.clusters = int(ivf.nlist)
        """How many lists there are."""
        self.sizes = np.array([_lists(ivf).list_size(number) for number in range(self.clusters)])
        """Rows of each list, (clusters,)."""
        self.dim = int(ivf.d)
        """Length of every vector."""
        self._rotation = kinds.rotation(storage, ivf.d)
        self._turn()
        self._overfetch = kinds.overfetch(storage, ivf.d)
        self._sure = _SURE_OF_ALL if storage in kinds.FAITHFUL else _SURE
        # What is picked of a mapped array is one, too, and that costs as much as to read it.
        self._plain = np.asarray(vectors)
        self.vectors = vectors
        """The stored vectors, by row; a mapped file where the index was read."""
        self.storage = storage
        """How the lists keep their vectors: "flat", "fp16", "sq8", "pq<M>" or "rabitq"."""
        # They travel with the call: those of the index are shared by all threads. A search changes nothing of them, and
        # to make them takes as long as to look at a list.
        self._visiting = lru_cache(lambda lists: kinds.parameters(storage, lists))

    @classmethod
    def build(
        cls,
        centroids: NDArray[np.float32],
        vectors: NDArray[np.float32],
        assignment: NDArray[np.int64],
        storage: str = "flat",
        seed: int = 0,
    ) -> ClusterIndex:
        """Puts each row into the list it is assigned to; `assignment` is (n,), by `nearest_centroids`.

        `seed` draws the sample that pq learns from. Raises InvalidArgument for a storage that cannot be.
        """
        ivf, rotation = kinds.new_lists(storage, centroids), kinds.rotation(storage, centroids.shape[1])
        if rotation is not None:
            kinds.set_centroids(ivf, rotation(centroids))
        kinds.fit_codes(ivf, centroids, vectors, assignment, seed)
        _reserve(ivf, np.bincount(assignment, minlength=len(centroids)))
        for start, block in kinds.blocks(vectors, _BLOCK):
            lists = np.ascontiguousarray(assignment[start : start + len(block)])
            kept = block if rotation is None else rotation(block)
            # add() would assign again, by another code path; 1 row in 100 then disagrees about its list.
            ivf.add_core(len(block), faiss.swig_ptr(kept), None, faiss.swig_ptr(lists))
        if rotation is not None:
            kinds.set_centroids(ivf, centroids)
        return cls(ivf, vectors, storage)

    def _turn(self) -> None:
        """Gives lists whose codes are of turned vectors the turned centroids. Their file has the others."""
        if self._rotation is not None:
            kinds.set_centroids(self._ivf, self._rotation(self.centroids))

    @classmethod
    def read(cls, path: Path, vectors: NDArray[np.float32]) -> ClusterIndex:
        """Memory-maps an index that `write` wrote. Raises CorruptGeneration where it does not fit the vectors."""
        try:
            ivf = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise CorruptGeneration(f"{path.name} is no FAISS index; verify the store and rebuild") from error
        storage = kinds.storage_of(ivf)
        if storage is None or (ivf.ntotal, ivf.d) != vectors.shape:
            raise CorruptGeneration(f"{path.name} does not hold the rows of vectors.npy; verify the store and rebuild")
        assert isinstance(ivf, faiss.IndexIVF), "which has a storage"
        lists = _lists(ivf)
        if isinstance(lists, faiss.OnDiskInvertedLists):
            lists.prefetch_nthread = 0  # else every search starts 32 threads that touch its lists' pages
        return cls(ivf, vectors, storage)

    def write(self, path: Path) -> None:
        """Writes the index; the vectors are the generation's own file."""
        if self._rotation is not None:
            kinds.set_centroids(self._ivf, self.centroids)
        faiss.write_index(self._ivf, str(path))
        self._turn()

    def warm(self) -> None:
        """Touches every page of what is mapped. Else the first search of each list and row pays for it."""
        kinds.touch(self._plain)
        lists = _lists(self._ivf)
        for number in range(self.clusters):
            if size := int(self.sizes[number]):
                kinds.touch(faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size))

    def __len__(self) -> int:
        return self._count

    @property
    def bytes(self) -> int:
        """What the lists take in memory: codes and the numbers of rows."""
        return kinds.storage_bytes(self.storage, len(self), self.dim)

    def vector(self, row: int) -> NDArray[np.float32]:
        """The vector of a row, (dim,)."""
        return np.array(self.vectors[row])

    def similarities(self, rows: NDArray[np.int64], vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine similarities of some rows to a vector, (n,), to the same bits as a search finds."""
        return dots(self._plain, rows, vector)

    def members(self, cluster: int) -> NDArray[np.int64]:
        """Rows in a cluster's list, ascending."""
        lists = _lists(self._ivf)
        return np.sort(faiss.rev_swig_ptr(lists.get_ids(cluster), lists.list_size(cluster)).copy())

    def nearest_clusters(
        self, vectors: NDArray[np.float32], limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest clusters of each vector, (n, limit), and their cosine similarities."""
        return nearest_centroids(self.centroids, vectors, limit, self._quantizer)

    def search(
        self,
        vector: NDArray[np.float32],
        limit: int,
        probes: int,
        hidden: AbstractSet[int] = frozenset(),
        margin: float | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest rows to one vector, (dim,): at most `limit` of them, best first, with their similarities.

        Visits `probes` lists, and more where those hold fewer than `limit` rows. `hidden` rows are left out. With
        all lists visited it is exact, whatever the storage.

        With a `margin` it visits, of `REACH` times as many lists, those whose centroids are no more than that less
        similar to the vector than the nearest one's: few where it lies deep in a cluster, many where it lies between
        some. Chen et al. 2021, SPANN (arXiv:2111.08566), section 3.3, do the same by the ratio of distances.
        """
        wanted = min(limit + len(hidden), len(self))
        fetch = self._overfetch * limit + len(hidden) + _SPARE_ROWS
        while True:
            rows, scores, unsure = self._candidates(vector, min(fetch, len(self)), wanted, probes, margin)
            if len(rows) < wanted and margin is not None:
                # All that the margin let through, and more: who asks for more finds what he found, too.
                lists, _ = self._lists_to_visit(vector, probes, margin)
                probes, margin = max(probes, len(lists)), None
            elif len(rows) < wanted and probes < self.clusters:
                probes *= 2
            elif unsure and fetch < len(self):
                fetch *= 4
            else:
                break
        if hidden:
            kept = ~np.isin(rows, list(hidden))
            rows, scores = rows[kept], scores[kept]
        return rows[:limit], scores[:limit]

    def search_among(
        self, vector: NDArray[np.float32], limit: int, probes: int, allowed: RowSet, margin: float | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`search` among some rows only: at most `limit` of them, best first, with their similarities.

        The fewer rows are allowed, the farther away the nearest ones lie: lists are visited, the nearest first, until
        several times as many allowed rows were seen as an unfiltered search of `probes` lists sees rows, and as many
        such lists; rows that are not allowed are passed over unread. Where nearly all are allowed the nearest lie where
        they do without a filter, and so do the lists, `margin` heeded. With all lists visited it is exact.
        """
        wanted = min(limit, len(allowed))
        if wanted == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        exact = probes >= self.clusters
        if len(allowed) <= max(_FEW_ROWS, 4 * limit) or (exact and self.storage != "flat"):
            return self._best_of(allowed.rows(), vector, wanted)
        lists, coarse, fetch = self._lists_among(vector, limit, probes, allowed, margin)
        selector = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg, arg-type]
        parameters = kinds.parameters(self.storage, len(lists), selector)
        while True:
            found, proposed = self._visit(vector, lists, coarse, min(fetch, len(allowed)), parameters)
            rows, scores, unsure = self._rescored(found, proposed, vector, wanted)
            if not unsure or len(found) < fetch or fetch >= len(allowed):
                return rows[:wanted], scores[:wanted]
            fetch *= 4

    def _lists_among(
        self, vector: NDArray[np.float32], limit: int, probes: int, allowed: RowSet, margin: float | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """The lists that `search_among` visits, the similarities of their centroids, and how many rows are proposed."""
        fetch, wider = self._overfetch * limit + _SPARE_ROWS, WIDER * probes
        if len(allowed) >= _NEARLY_ALL * len(self):
            lists, coarse = self._lists_to_visit(vector, probes, margin)
            held = allowed.per_cluster[lists]
            if held.sum() >= fetch and (held >= _NEARLY_ALL * self.sizes[lists]).all():
                return lists, coarse, fetch
            wider = max(wider, len(lists))  # who asks for more finds what he found, too
        fetch = WIDER * self._overfetch * limit + _SPARE_ROWS
        return *self._lists_for(vector, wider, allowed, fetch), fetch

    def _lists_for(
        self, vector: NDArray[np.float32], probes: int, allowed: RowSet, fetch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """So many lists, the nearest that hold allowed rows, or more until enough were seen; and the similarities of
        their centroids.
        """
        similarities = self.centroids @ vector  # (clusters,)
        held = allowed.per_cluster
        order = np.argsort(-similarities, kind="stable")
        order = order[held[order] > 0]
        seen = np.cumsum(held[order])
        enough = max(fetch, len(self) * probes // self.clusters)
        count = max(probes, int(np.searchsorted(seen, enough)) + 1)
        return order[:count], similarities[order[:count]]

    def _visit(
        self,
        vector: NDArray[np.float32],
        lists: NDArray[np.int64],
        coarse: NDArray[np.float32],
        fetch: int,
        parameters: faiss.SearchParametersIVF,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Up to `fetch` rows of these lists, and their scores as the codes tell them."""
        query = np.ascontiguousarray(vector) if self._rotation is None else self._rotation(vector)
        found, scores = np.empty(fetch, np.int64), np.empty(fetch, np.float32)
        arrays = (faiss.swig_ptr(array) for array in (lists, coarse, scores, found))
        # The wrapper takes no parameters; the method that it wraps does.
        run = self._ivf.search_preassigned_c  # type: ignore[attr-defined]
        run(1, faiss.swig_ptr(query), fetch, *arrays, False, parameters)
        return _there(found, scores)

    def _best_of(
        self, rows: NDArray[np.int64], vector: NDArray[np.float32], wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest of some rows, ascending, each of which is looked at."""
        guesses = products(self._plain, rows, vector)
        last = np.partition(guesses, -wanted)[-wanted] if wanted < len(rows) else -np.inf
        near = guesses >= last - _FP32_NOISE
        rows, scores, _ = self._rescored(rows[near], guesses[near], vector, wanted)
        return rows[:wanted], scores[:wanted]

    def _candidates(
        self, vector: NDArray[np.float32], fetch: int, wanted: int, probes: int, margin: float | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
        """Rows by score, their scores, and whether rows that were not fetched could be among those wanted."""
        if probes >= self.clusters and self.storage != "flat":
            nearest, similarities = self.nearest_rows(np.ascontiguousarray(vector)[None], fetch)
            found, proposed = _there(nearest[0], similarities[0])
        else:
            lists, coarse = self._lists_to_visit(vector, probes, margin)
            found, proposed = self._visit(vector, lists, coarse, fetch, self._visiting(len(lists)))
        rows, scores, unsure = self._rescored(found, proposed, vector, wanted)
        return rows, scores, unsure and len(found) == fetch

    def _lists_to_visit(
        self, vector: NDArray[np.float32], probes: int, margin: float | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The lists that `search` visits, the nearest first, and the similarities of their centroids."""
        if margin is None or probes >= self.clusters:
            return self._nearest_lists(vector, min(probes, self.clusters))
        lists, coarse = self._nearest_lists(vector, min(REACH * probes, self.clusters))
        count = lists_within(coarse, probes, margin)
        return lists[:count], coarse[:count]

    def _nearest_lists(self, vector: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest lists to one vector, (count,), and the similarities of their centroids."""
        query = np.ascontiguousarray(vector)
        lists, coarse = np.empty(count, np.int64), np.empty(count, np.float32)
        # What the wrapper looks at takes a fifth of the time.
        run = self._quantizer.search_c  # type: ignore[attr-defined]
        run(1, faiss.swig_ptr(query), count, faiss.swig_ptr(coarse), faiss.swig_ptr(lists))
        return lists, coarse

    def _rescored(
        self,
        found: NDArray[np.int64],
        proposed: NDArray[np.float32],
        vector: NDArray[np.float32],
        wanted: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], bool]:
        """What was proposed, by its score in fp64, those wanted at least; and whether what was not proposed could be
        among those wanted.
        """
        last, unsure = proposed.min(initial=np.inf), False
        more = 0 < wanted < len(found)
        many = more and (self._overfetch > 1 or _FEW_MORE * wanted < len(found))
        if many:
            guesses = products(self._plain, found, vector)
            least = np.partition(guesses, -wanted)[-wanted]
            unsure = self._doubtful(least - last, proposed - guesses)
            near = guesses >= least - _FP32_NOISE
            found, proposed = found[near], proposed[near]
        scores = dots(self._plain, found, vector)
        order = np.lexsort((found, -scores))  # rows are in the order of ids
        if more and not many and self.storage != "flat":
            unsure = self._doubtful(scores[order[wanted - 1]] - last, proposed - scores)
        # Equal vectors have equal codes: only what was proposed last can have equals that were not fetched.
        tie = 0 < wanted <= len(found) and bool(proposed[order[:wanted]].min() - last < _FP32_NOISE)
        return found[order], scores[order], unsure or tie

    def _doubtful(self, ahead: np.floating, errors: NDArray[np.float32]) -> bool:
        """Whether codes that are so wrong about some rows may have passed over one that is nearer than the last wanted,
        whose score is so far `ahead` of what was proposed last.
        """
        return bool(ahead < self._sure * math.sqrt(errors @ errors / len(errors)))

    def nearest_rows(self, queries: NDArray[np.float32], limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest rows by brute force over the stored vectors, (q, limit), -1 where there are none.

        Reads the file once for all queries, (q, dim). Similarities are fp32 products; those that differ by less than
        1e-5 may come in either order.
        """
        best = faiss.ResultHeap(len(queries), limit, keep_max=True)
        for start, block in kinds.blocks(self.vectors, _SCAN_BLOCK):
            scores, found = faiss.knn(queries, block, min(limit, len(block)), faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, found + start)
        best.finalize()
        return best.I, best.D

    def search_many(
        self, queries: NDArray[np.float32], limit: int, probes: int, among: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest rows to many vectors, (q, dim), for work offline: rows, (q, limit), -1 where there are none.

        Takes the lists one after the other, all queries of a list in one matrix product with its stored vectors, on
        all threads: the answer does not depend on the storage, and the more queries, the less each costs. Visits
        exactly `probes` lists. Similarities, (q, limit), are fp32 products: those that differ by less than 1e-5 may
        come in either order, and so may lists at the edge of the visited. `among`, (n,), tells which rows may be found.
        """
        queries = np.ascontiguousarray(queries)
        _, visited = self._quantizer.search(queries, min(probes, self.clusters))
        order = np.argsort(visited, axis=None, kind="stable")
        asking = order // max(visited.shape[1], 1)  # queries, by the list that they visit
        ends = np.cumsum(np.bincount(visited.ravel(), minlength=self.clusters))
        best = faiss.ResultHeap(len(queries), limit, keep_max=True)
        for cluster, subset in enumerate(np.split(asking, ends[:-1])):
            members = self.members(cluster)
            members = members if among is None else members[among[members]]
            if len(subset) and len(members):
                vectors, wanted = self.vectors[members], min(limit, len(members))
                scores, found = faiss.knn(queries[subset], vectors, wanted, faiss.METRIC_INNER_PRODUCT)
                best.add_result_subset(subset, scores, members[found])
                kinds.release(self.vectors)  # the rows of a list lie all over the file
        best.finalize()
        return best.I, best.D


def _there(found: NDArray[np.int64], scores: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What was found, without the places at the end where there was nothing more."""
    if len(found) and found[-1] < 0:
        there = found >= 0
        return found[there], scores[there]
    return found, scores


def lists_within(similarities: NDArray[np.float32], probes: int, margin: float) -> int:
    """How many lists a search with a margin visits: `similarities` of their centroids, (lists,), the nearest first."""
    return int(np.count_nonzero(similarities[: REACH * probes] >= similarities[0] - margin))


def _lists(ivf: faiss.IndexIVF) -> faiss.InvertedLists:
    assert ivf.invlists is not None, "an index that was built or read has lists"
    return faiss.downcast_InvertedLists(ivf.invlists)


def _reserve(ivf: faiss.IndexIVF, sizes: NDArray[np.int64]) -> None:
    """Gives each list the memory that it will need: one that grows as it fills takes up to twice as much."""
    lists = _lists(ivf)
    for cluster, size in enumerate(sizes.tolist()):
        lists.resize(cluster, size)
        lists.resize(cluster, 0)


def products(vectors: NDArray[np.float32], rows: NDArray[np.int64], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products of some rows in fp32, (n,), where they lie and on this thread alone.

    Those in fp64 take twice as long. numpy would copy the rows, and share a thousand out among all cores: beside one
    that is busy that took ten times as long.
    """
    found, query = np.empty(len(rows), np.float32), np.ascontiguousarray(vector)
    arrays = [faiss.swig_ptr(array) for array in (found, query, vectors, rows)]
    faiss.fvec_inner_products_by_idx(*arrays, vectors.shape[1], 1, len(rows))  # type: ignore[attr-defined]
    return found


def dots(vectors: NDArray[np.float32], rows: NDArray[np.int64], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products of some rows, (n,): summed in fp64 in one order for every row, so equal rows have equal scores."""
    scores, wide = np.empty(len(rows), np.float32), vector.astype(np.float64)
    for start in range(0, len(rows), _BLOCK):
        block = vectors[rows[start : start + _BLOCK]].astype(np.float64)  # (block, dim)
        scores[start : start + _BLOCK] = np.vecdot(block, wide)  # each row for itself, unlike a product
    return scores


def nearest_centroids(
    centroids: NDArray[np.float32],
    vectors: NDArray[np.float32],
    limit: int,
    quantizer: faiss.IndexFlat | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The one path by which anything is assigned to clusters, offline and online.

    fp32 products depend on how many vectors are multiplied at once; the few best are therefore compared again in
    fp64. Returns cluster numbers, (n, limit), nearest first, equal ones by number, and cosine similarities.
    """
    if quantizer is None:
        quantizer = faiss.IndexFlatIP(centroids.shape[1])
        quantizer.add(np.ascontiguousarray(centroids))
    limit = min(limit, len(centroids))
    clusters = np.empty((len(vectors), limit), np.int64)
    similarities = np.empty((len(vectors), limit), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = np.ascontiguousarray(vectors[start : start + _BLOCK])
        rows = slice(start, start + len(block))
        clusters[rows], similarities[rows] = _nearest(centroids, block, limit, quantizer)
        kinds.release(vectors)
    return clusters, similarities


def _nearest(
    centroids: NDArray[np.float32], block: NDArray[np.float32], limit: int, quantizer: faiss.IndexFlat
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`nearest_centroids` of a few vectors, (block, limit)."""
    fetch = min(limit + _SPARE_CENTROIDS, len(centroids))
    while True:
        _, found = quantizer.search(block, fetch)
        found = np.sort(found, axis=1)  # (block, fetch), by number
        exact = np.stack([(centroids[found[:, j]].astype(np.float64) * block).sum(axis=1) for j in range(fetch)], 1)
        order = np.argsort(-exact, axis=1, kind="stable")
        ranked = np.take_along_axis(exact, order, axis=1)
        # Centroids that were not fetched could tie with the last one wanted.
        tie = ranked[:, limit - 1] - ranked[:, -1] < _FP32_NOISE
        if fetch == len(centroids) or not tie.any():
            return np.take_along_axis(found, order[:, :limit], axis=1), ranked[:, :limit]
        fetch = min(4 * fetch, len(centroids))
