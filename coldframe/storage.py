"""How the lists of an index keep their vectors: as they are, or as smaller codes.

    flat    fp32                                                      4 bytes per component
    fp16    half precision                                            2 bytes
    sq8     a step of 255 in the component's range in the corpus      1 byte
    pq<M>   product quantization (Jegou, Douze and Schmid 2011) of    M bytes per vector; M divides the dimension
            what the centroid leaves over
    rabitq  the sign of each component of what the centroid leaves    1 bit, and 8 bytes per vector
            over, and two numbers by which the similarity is
            estimated without bias (Gao and Long 2024,
            arXiv:2405.12497)

Codes only propose candidates; what is answered is scored again from the stored vectors. So fp16 finds what flat finds,
and takes half the memory and less than half the time. A scan waits for memory: rabitq, of which it reads a fifteenth of
fp16, takes a third of the time again, and leaves the rest of a request its place in the caches.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from coldframe.errors import InvalidArgument
from coldframe.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FAITHFUL = ("fp16", "flat")
"""The kinds that find all that their lists hold, the better first. As answers are scored again, half precision loses
none; flat is for whoever wants every neighbour and not nearly every one."""
ID_BYTES = 8
LEAST_PQ_ROWS = 256
"""A codebook has so many entries, each of a row at least."""
# FAISS would take 256; a quarter of the time and memory costs no recall.
_POINTS_PER_CODE = 64
# And 25; after 10 the codes find as much.
_PQ_ITERATIONS = 10
_BLOCK = 8_192
_RABITQ_NUMBERS = 8
# That are looked at for every answer, over all proposed.
_RABITQ_BITS = 3_072
# Of each component of a query. With 8 as much is found, in a third more time.
_RABITQ_QUERY_BITS = 4


def code_size(storage: str, dim: int) -> int:
    """Bytes per vector. Raises InvalidArgument for a kind that there is not, or whose M does not divide `dim`."""
    per_component = {"flat": 4, "fp16": 2, "sq8": 1}
    if storage == "rabitq":
        return (dim + 7) // 8 + _RABITQ_NUMBERS
    if storage in per_component:
        return per_component[storage] * dim
    digits = storage.removeprefix("pq")
    if storage.startswith("pq") and digits.isdecimal() and int(digits) > 0 and dim % int(digits) == 0:
        return int(digits)
    raise InvalidArgument(
        f"the storage is {storage!r}; it must be rabitq, flat, fp16, sq8, or pq and a number that divides the "
        f"dimension, {dim}, such as pq{dim // 4 if dim % 4 == 0 else dim}",
        field="storage",
    )


def storage_bytes(storage: str, rows: int, dim: int) -> int:
    """What lists of so many rows take: their codes and the numbers of their rows."""
    return rows * (code_size(storage, dim) + ID_BYTES)


def overfetch(storage: str, dim: int) -> int:
    """How many candidates per wanted answer the codes must propose for the re-ranking to miss next to nothing.

    The shorter a code, the more.
    """
    if storage.startswith("pq"):
        return max(8, 4 * dim // code_size(storage, dim))
    if storage == "rabitq":
        return max(2, -(-_RABITQ_BITS // dim))
    return 2 if storage == "sq8" else 1


def new_lists(storage: str, centroids: NDArray[np.float32]) -> faiss.IndexIVF:
    """An empty inverted file of unit vectors around `centroids`, (clusters, dim)."""
    clusters, dim = centroids.shape
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(np.ascontiguousarray(centroids))
    size, product = code_size(storage, dim), faiss.METRIC_INNER_PRODUCT
    if storage == "flat":
        return faiss.IndexIVFFlat(quantizer, dim, clusters, product)
    if storage == "rabitq":
        return faiss.IndexIVFRaBitQ(quantizer, dim, clusters, product, True, 1)
    if storage.startswith("pq"):
        ivf = faiss.IndexIVFPQ(quantizer, dim, clusters, size, 8, product)
        ivf.pq.cp.min_points_per_centroid = 1
        ivf.pq.cp.niter = _PQ_ITERATIONS
        return ivf
    scalar = faiss.ScalarQuantizer.QT_fp16 if storage == "fp16" else faiss.ScalarQuantizer.QT_8bit
    return faiss.IndexIVFScalarQuantizer(quantizer, dim, clusters, scalar, product, False)


def parameters(storage: str, lists: int, selector: faiss.IDSelector | None = None) -> faiss.SearchParametersIVF:
    """How lists of a kind are searched: so many of them, and of their rows those that a selector takes."""
    if storage == "rabitq":
        return faiss.IVFRaBitQSearchParameters(nprobe=lists, sel=selector, qb=_RABITQ_QUERY_BITS)  # type: ignore[call-arg]
    return faiss.SearchParametersIVF(nprobe=lists, sel=selector)  # type: ignore[call-arg]


def rotation(storage: str, dim: int) -> Rotation | None:
    """How vectors are turned before their codes are made; None where they are not."""
    return Rotation(dim) if storage == "rabitq" else None


def set_centroids(ivf: faiss.IndexIVF, centroids: NDArray[np.float32]) -> None:
    """Gives the lists other centroids, (clusters, dim): those that what is left over is told from."""
    quantizer = faiss.downcast_index(ivf.quantizer)
    quantizer.reset()
    quantizer.add(np.ascontiguousarray(centroids))


def storage_of(ivf: faiss.Index) -> str | None:
    """The kind of an index that `new_lists` made; None for any other."""
    if not isinstance(ivf, faiss.IndexIVF) or ivf.metric_type != faiss.METRIC_INNER_PRODUCT:
        return None
    if isinstance(ivf, faiss.IndexIVFFlat):
        return "flat"
    if isinstance(ivf, faiss.IndexIVFRaBitQ):
        return "rabitq" if ivf.code_size == code_size("rabitq", ivf.d) else None  # of one bit
    if isinstance(ivf, faiss.IndexIVFPQ):
        return f"pq{ivf.pq.M}" if ivf.pq.nbits == 8 else None
    if isinstance(ivf, faiss.IndexIVFScalarQuantizer):
        return {faiss.ScalarQuantizer.QT_fp16: "fp16", faiss.ScalarQuantizer.QT_8bit: "sq8"}.get(ivf.sq.qtype)
    return None


def fit_codes(
    ivf: faiss.IndexIVF,
    centroids: NDArray[np.float32],
    vectors: NDArray[np.float32],
    assignment: NDArray[np.int64],
    seed: int,
) -> None:
    """Fits what a kind's codes need of the corpus: ranges for sq8, codebooks for pq.

    Raises InvalidArgument where pq has fewer rows than a codebook has entries.
    """
    if isinstance(ivf, faiss.IndexIVFScalarQuantizer) and ivf.sq.qtype == faiss.ScalarQuantizer.QT_8bit:
        lowest, highest = _ranges(vectors)
        faiss.copy_array_to_vector(np.concatenate([lowest, highest - lowest]), ivf.sq.trained)
    elif isinstance(ivf, faiss.IndexIVFPQ):
        _fit_codebooks(ivf, centroids, vectors, assignment, seed)
    ivf.is_trained = True


def _fit_codebooks(
    ivf: faiss.IndexIVFPQ,
    centroids: NDArray[np.float32],
    vectors: NDArray[np.float32],
    assignment: NDArray[np.int64],
    seed: int,
) -> None:
    if len(vectors) < LEAST_PQ_ROWS:
        raise InvalidArgument(
            f"the storage is pq{ivf.pq.M} and the corpus has {len(vectors)} articles; pq needs at least "
            f"{LEAST_PQ_ROWS}: choose flat, fp16 or sq8",
            field="storage",
        )
    count = min(len(vectors), LEAST_PQ_ROWS * _POINTS_PER_CODE)
    rows = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
    lists = np.ascontiguousarray(assignment[rows])
    residuals = np.ascontiguousarray(vectors[rows])
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        residuals[block] -= centroids[lists[block]]
    release(vectors)
    ivf.pq.cp.seed = seed
    ivf.train_encoder(count, faiss.swig_ptr(residuals), faiss.swig_ptr(lists))


def _ranges(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least and the greatest of every component, (dim,), of all rows: none is clipped."""
    lowest = np.full(vectors.shape[1], np.inf, np.float32)
    highest = -lowest
    for _, block in blocks(vectors, _BLOCK):
        np.minimum(lowest, block.min(axis=0), out=lowest)
        np.maximum(highest, block.max(axis=0), out=highest)
    return lowest, highest


def blocks(vectors: NDArray[np.float32], size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, rows) of at most `size` rows, in order. What has been read of a mapped file is let go of."""
    for start in range(0, len(vectors), size):
        yield start, np.ascontiguousarray(vectors[start : start + size])
        release(vectors)


def touch(array: NDArray[Any]) -> None:
    """Reads a byte of every page that an array lies on."""
    array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)


def release(vectors: NDArray[np.float32]) -> None:
    """Unmaps the pages of a memory-mapped file that were touched; they stay in the system's file cache.

    Nothing is lost: numpy maps files shared, but for copies on write, which are left alone, as are arrays in memory.
    """
    mapped = getattr(vectors, "_mmap", None)
    if mapped is not None and getattr(vectors, "mode", "c") != "c":
        mapped.madvise(mmap.MADV_DONTNEED)
