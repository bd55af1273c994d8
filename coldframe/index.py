"""The vectors of a generation behind a FAISS inverted file whose lists are the clusters.

Vectors and centroids have unit length, so that inner product is cosine similarity. FAISS proposes candidates in
fp32; what is answered is scored again in fp64 and ordered by score, then row. Rows are sorted by article id, so
equal scores come in the order of ids, and an exact search equals brute force to the last place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import faiss
import numpy as np

from coldframe.errors import CorruptGeneration

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from numpy.typing import NDArray

# Scores that differ by less may come in either order from fp32: candidates this close to the cut are looked at too.
_FP32_NOISE = 1e-5
_SPARE_CENTROIDS = 2
_BLOCK = 2_048


class ClusterIndex:
    """An IVF index over `vectors`, (n, dim), of unit length; `centroids` is (clusters, dim)."""

    def __init__(self, ivf: faiss.IndexIVF, vectors: NDArray[np.float32]) -> None:
        self._ivf = ivf
        self._vectors = vectors
        self._quantizer = cast("faiss.IndexFlat", faiss.downcast_index(ivf.quantizer))
        self.centroids: NDArray[np.float32] = self._quantizer.reconstruct_n(0, ivf.nlist)

    @classmethod
    def build(
        cls, centroids: NDArray[np.float32], vectors: NDArray[np.float32], assignment: NDArray[np.int64]
    ) -> ClusterIndex:
        """Puts each row into the list it is assigned to; `assignment` is (n,), by `nearest_centroids`."""
        quantizer = faiss.IndexFlatIP(centroids.shape[1])
        quantizer.add(np.ascontiguousarray(centroids))
        ivf = faiss.IndexIVFFlat(quantizer, centroids.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
        ivf.is_trained = True
        for start in range(0, len(vectors), _BLOCK):
            block = np.ascontiguousarray(vectors[start : start + _BLOCK])
            lists = np.ascontiguousarray(assignment[start : start + _BLOCK])
            # add() would assign again, by another code path; 1 row in 100 then disagrees about its list.
            ivf.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(lists))
        return cls(ivf, vectors)

    @classmethod
    def read(cls, path: Path, vectors: NDArray[np.float32]) -> ClusterIndex:
        """Memory-maps an index that `write` wrote. Raises CorruptGeneration where it does not fit the vectors."""
        try:
            ivf = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise CorruptGeneration(f"{path.name} is no FAISS index; verify the store and rebuild") from error
        if not isinstance(ivf, faiss.IndexIVF) or (ivf.ntotal, ivf.d) != vectors.shape:
            raise CorruptGeneration(f"{path.name} does not hold the rows of vectors.npy; verify the store and rebuild")
        assert ivf.invlists is not None, "an index that was written has lists"
        lists = faiss.downcast_InvertedLists(ivf.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists):
            lists.prefetch_nthread = 0  # else every search starts 32 threads that touch its lists' pages
        return cls(ivf, vectors)

    def write(self, path: Path) -> None:
        """Writes the index; the vectors are the generation's own file."""
        faiss.write_index(self._ivf, str(path))

    def __len__(self) -> int:
        return int(self._ivf.ntotal)

    @property
    def clusters(self) -> int:
        """How many lists there are."""
        return int(self._ivf.nlist)

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return int(self._ivf.d)

    def vector(self, row: int) -> NDArray[np.float32]:
        """The vector of a row, (dim,)."""
        return np.array(self._vectors[row])

    def members(self, cluster: int) -> NDArray[np.int64]:
        """Rows in a cluster's list, ascending."""
        lists = self._ivf.invlists
        assert lists is not None, "an index that was built or read has lists"
        return np.sort(faiss.rev_swig_ptr(lists.get_ids(cluster), lists.list_size(cluster)).copy())

    def nearest_clusters(
        self, vectors: NDArray[np.float32], limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest clusters of each vector, (n, limit), and their cosine similarities."""
        return nearest_centroids(self.centroids, vectors, limit, self._quantizer)

    def search(
        self, vector: NDArray[np.float32], limit: int, probes: int, hidden: AbstractSet[int] = frozenset()
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest rows to one vector, (dim,): at most `limit` of them, best first, with their similarities.

        Visits `probes` lists, and more where those hold fewer than `limit` rows. `hidden` rows are left out.
        """
        wanted = min(limit + len(hidden), len(self))
        fetch = wanted + 8
        while True:
            rows, scores = self._candidates(vector, min(fetch, len(self)), probes)
            if len(rows) < wanted and probes < self.clusters:
                probes *= 2
            elif len(rows) == fetch < len(self) and _cut_in_a_tie(scores, wanted):
                fetch *= 4
            else:
                break
        if hidden:
            kept = ~np.isin(rows, list(hidden))
            rows, scores = rows[kept], scores[kept]
        return rows[:limit], scores[:limit]

    def _candidates(
        self, vector: NDArray[np.float32], fetch: int, probes: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        # Parameters travel with the call: index.nprobe is shared by all threads.
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, self.clusters))  # type: ignore[call-arg]
        _, found = self._ivf.search(np.ascontiguousarray(vector[None]), fetch, params=parameters)
        rows = np.sort(found[0][found[0] >= 0])
        scores = _dots(self._vectors[rows], vector)
        order = np.argsort(-scores, kind="stable")  # rows ascend, so equal scores stay in the order of ids
        return rows[order], scores[order]


def _cut_in_a_tie(scores: NDArray[np.float32], wanted: int) -> bool:
    """Whether rows that were not fetched could tie with the last one wanted."""
    return 0 < wanted <= len(scores) and bool(scores[wanted - 1] - scores[-1] < _FP32_NOISE)


def _dots(rows: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products, (n,): summed in fp64 in one order for every row, so equal rows have equal scores."""
    products = rows.astype(np.float64) * vector.astype(np.float64)
    sums: NDArray[np.float64] = products.sum(axis=1)
    return sums.astype(np.float32)


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
