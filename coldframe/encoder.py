"""The encoder that both programs stand on: texts in, one vector each out."""

from __future__ import annotations

import ctypes
import heapq
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import TYPE_CHECKING, TypeVar, get_args

import numpy as np
import torch

from coldframe import models
from coldframe.errors import InvalidArgument, ModelUnavailable
from coldframe.linear import multiplies_bf16, prepare, runs
from coldframe.packing import SHORT
from coldframe.precision import Device, Precision
from coldframe.recipe import Recipe, named, unit
from coldframe.reference import from_reference
from coldframe.text import MAX_TEXT_CHARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from coldframe.longformer import Longformer

Part = TypeVar("Part")
Result = TypeVar("Result")

# Tokens computed together: what lies between two layers stays in the processor's cache, and reading the weights once
# more for every batch costs a hundredth.
TOKENS_PER_BATCH = 1_024
_TOKENS_PER_GPU_BATCH = 8_192
# Fewer tokens than this for each core are one batch for all of them.
_TOKENS_PER_CORE = 256
# How much longer a document may be than each core's share before all cores take it together, which costs them a sixth.
_UNEVEN = 1.15
# Characters of texts that are sorted by length together, some ten batches: memory is the same for any number of texts.
_CHARS_PER_WINDOW = 131_072
# After so many tokens, half a minute of work, what malloc keeps in pieces between two batches goes back to the system.
# Else a process grows by a tenth and more over some thousand articles.
_TOKENS_PER_TRIM = 262_144
_QUOTED = 40
# Held while torch's number of threads is another than new threads are to have.
_NUMBER = Lock()

# A model whose int8 vectors turn further from its unrounded ones than this cosine is not run in int8.
INT8_COSINE = 0.995
# Narrower models gain nothing from int8: rounding the activations costs what the products save.
_INT8_PAYS_FROM = 512
_INT8_TRIAL = (
    "The harbour authority reopened the northern quay on Tuesday, eleven weeks after the storm that sank two barges.",
    "Shares in the chip maker fell 4.2% after it cut its forecast; analysts had expected a quarter of record sales. "
    * 4,
    "She kicked twice in the last lap, and the crowd rose. 'I never looked back,' she said, 'not once.' " * 12,
)


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads; their ends were cut off."""


class PrecisionWarning(UserWarning):
    """A model was asked to run in a precision that it or the processor does not bear; it runs in a higher one."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it."""

    ids: list[int]
    """At most `max_tokens`, special tokens included."""
    seen: int
    """How many there were before the text's end was cut off."""

    @property
    def used(self) -> int:
        """How many are read."""
        return len(self.ids)


class Encoder:
    """A Longformer, its tokenizer and a recipe. Safe to share between threads."""

    def __init__(self, model: models.Model, recipe: Recipe, precision: Precision, device: Device) -> None:
        self.device = _choose_device(device)
        self.name = model.name
        self.recipe = recipe
        self.fingerprint = models.fingerprint(model, recipe)
        """Hex digest of weights, tokenizer and recipe: equal for encoders whose vectors may be compared."""
        self._tokenizer = model.tokenizer
        self._config = model.longformer_config()
        self.precision = _choose_precision(precision, self.device, self._config.hidden)
        self._longformer = _build(model, self.precision, self.device)
        self._untrimmed = 0
        if self.precision == "int8":
            self._require_int8(model)

    @classmethod
    def load(
        cls, model: str, recipe: str | None = None, precision: Precision = "auto", device: Device = "auto"
    ) -> Encoder:
        """Loads a model by hub id, by directory, or "minilm", the embedded default.

        `recipe` None is the model's own; "seed" sums the last 4 hidden layers over all tokens, not normalised.
        `precision` "auto" is the fastest that the processor has instructions for; one that it cannot run at all gives
        way to a higher one, with PrecisionWarning. Raises ModelUnavailable where the model cannot be had,
        InvalidArgument for a recipe, precision or device that there is not.
        """
        loaded = models.load(model, named(recipe) if recipe is not None else None)
        return cls(loaded, loaded.recipe, precision, device)

    def _require_int8(self, model: models.Model) -> None:
        """Goes back to the next precision where the model's int8 vectors are not those of its unrounded weights."""
        documents = [t.ids for t in self.tokenize(_INT8_TRIAL)] if self._tokenizer else _random_ids(model)
        rounded = self.embed_ids(documents)
        wide = _wide()
        int8, self._longformer = self._longformer, _build(model, wide, self.device)
        plain = self.embed_ids(documents)
        cosine = float((unit(rounded) * unit(plain)).sum(axis=1).min())
        if cosine >= INT8_COSINE:
            self._longformer = int8
            return
        self.precision = wide
        message = f"{self.name} loses too much in int8 (cosine {cosine:.4f}, needed {INT8_COSINE}); it runs in {wide}"
        warnings.warn(message, PrecisionWarning, stacklevel=4)

    def compile(self) -> None:
        """Takes some seconds to make bf16 on a CPU up to a tenth faster: for thousands of texts. int8 has it already.

        Vectors differ from those of before by rounding alone.
        """
        self._longformer.compile_softmax()

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self.recipe.dim(self._config.hidden)

    @property
    def max_tokens(self) -> int:
        """The longest text that is read whole, special tokens included."""
        return self._config.max_tokens

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, its end cut off where it is longer than the model reads.

        Raises InvalidArgument for texts over 1,000,000 characters and for those without a token, such as blank ones
        where the tokenizer adds none; ModelUnavailable for a model of weights alone.
        """
        if self._tokenizer is None:
            raise ModelUnavailable(
                f"{self.name} has no tokenizer, so it embeds token ids and no texts; put its tokenizer.json beside "
                f"its weights"
            )
        _check_texts(texts)
        # A lone surrogate is no character and the tokenizer refuses it; it reads as a question mark.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        tokens = [self._cut(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(clean)]
        _check_tokens(clean, tokens)
        return tokens

    def _cut(self, ids: list[int]) -> Tokens:
        # The closing special token stays: it is one of the two global ones.
        kept = ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]
        return Tokens(kept, seen=len(ids))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, (n, dim), in their order.

        Warns with TruncationWarning where texts are longer than `max_tokens`.
        """
        _check_texts(texts)
        vectors, cut = np.empty((len(texts), self.dim), np.float32), 0
        for part, tokens in self.tokenize_ahead(_windows(texts), lambda part: texts[part]):
            vectors[part] = self.embed_ids([t.ids for t in tokens])
            cut += sum(t.used < t.seen for t in tokens)
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than {self.max_tokens:,} tokens; their ends were not read",
                TruncationWarning,
                stacklevel=2,
            )
        return vectors

    def tokenize_ahead(
        self, parts: Iterable[Part], texts: Callable[[Part], Sequence[str]]
    ) -> Iterator[tuple[Part, list[Tokens]]]:
        """Each part with the tokens of its texts. The next is tokenized, on a thread of its own, while the caller
        computes the last.
        """
        with ThreadPoolExecutor(1, "tokenize") as pool:
            ahead: tuple[Part, Future[list[Tokens]]] | None = None
            for part in parts:
                following = part, pool.submit(self.tokenize, texts(part))
                if ahead is not None:
                    yield ahead[0], ahead[1].result()
                ahead = following
            if ahead is not None:
                yield ahead[0], ahead[1].result()

    def embed_ids(
        self, documents: Sequence[Sequence[int]], between: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        """Vectors of token ids, special tokens included, (n, dim). Raises InvalidArgument for ids of no text.

        `between` is called on this thread again and again while they are computed (`Longformer.forward`).
        """
        return self.embed_ids_by(documents, [self.recipe], between)[0]

    def embed_ids_by(
        self,
        documents: Sequence[Sequence[int]],
        recipes: Sequence[Recipe],
        between: Callable[[], None] | None = None,
    ) -> list[NDArray[np.float32]]:
        """The same by several recipes at once, for the price of one: for each, (n, recipe.dim(hidden))."""
        self._check_ids(documents)
        hidden = self._config.hidden
        vectors = [np.empty((len(documents), recipe.dim(hidden)), np.float32) for recipe in recipes]
        for batch, found in self._batches(documents, recipes, between):
            for rows, part in zip(vectors, found, strict=True):
                rows[batch] = part.float().cpu().numpy()
        for rows in vectors:
            _check_numbers(rows)
        return vectors

    def _batches(
        self, documents: Sequence[Sequence[int]], recipes: Sequence[Recipe], between: Callable[[], None] | None
    ) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Rows and their vectors, batch by batch; on a CPU each core takes batches of its own.

        So many cores as torch has on this thread: a team that shares each product waits for its slowest member, dozens
        of times in a layer. What has `between` has one thing done at a time.
        """

        def run(batch: list[int]) -> list[Tensor]:
            found: list[Tensor] = self._longformer([documents[n] for n in batch], recipes, between)
            return found

        lengths = [len(ids) for ids in documents]
        if self.device == "cuda":
            yield from ((batch, run(batch)) for batch in plan_batches(lengths, _TOKENS_PER_GPU_BATCH))
            return
        cores = 1 if between is not None else _cores()
        together, apart = plan_cores(lengths, cores)
        yield from ((batch, run(batch)) for batch in together)
        if apart:
            yield from zip(apart, on_cores(run, apart, cores), strict=True)
            self._untrimmed += sum(lengths)
            if self._untrimmed >= _TOKENS_PER_TRIM:
                self._untrimmed = 0
                give_back_memory()

    def _check_ids(self, documents: Sequence[Sequence[int]]) -> None:
        for n, document in enumerate(documents):
            ids = _as_ids(document, n)
            if not 1 <= len(ids) <= self.max_tokens:
                raise InvalidArgument(
                    f"document {n} has {len(ids):,} tokens; allowed are 1 to {self.max_tokens:,}", field="documents"
                )
            if ids.min() < 0 or ids.max() >= self._config.vocab_size:
                raise InvalidArgument(
                    f"document {n} has a token id outside 0 to {self._config.vocab_size - 1:,}", field="documents"
                )


def _as_ids(document: Sequence[int], n: int) -> NDArray[np.integer]:
    """Token ids, (tokens,), of any type of whole numbers."""
    with suppress(TypeError, ValueError, OverflowError):
        ids = np.asarray(document)
        if ids.ndim == 1 and (ids.dtype.kind in "iu" or not len(ids)):
            return ids
    raise InvalidArgument(
        f"document {n} is no list of token ids, which are whole numbers such as [101, 7592, 102]", field="documents"
    )


def _check_numbers(vectors: NDArray[np.float32]) -> None:
    """One that is no number would be kept and compared with all others, and nothing would say so."""
    if not np.isfinite(vectors).all():
        raise ModelUnavailable(
            "a vector holds what is no number: the model's weights are damaged, or the machine is; fetch the model "
            "again, or try another precision or device"
        )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InvalidArgument("texts is one text; give a list of texts, such as ['a text']", field="texts")
    for n, text in enumerate(texts):
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidArgument(
                f"text {n} has {len(text):,} characters; at most {MAX_TEXT_CHARS:,} are allowed", field="texts"
            )


def _check_tokens(texts: Sequence[str], tokens: Sequence[Tokens]) -> None:
    for text, read in zip(texts, tokens, strict=True):
        if not read.ids:
            raise InvalidArgument(
                f"the text {text[:_QUOTED]!r} has no token: it is blank, or all of it is what the model leaves out; "
                f"give a text with a word",
                field="texts",
            )


def _windows(texts: Sequence[str]) -> Iterator[slice]:
    """Consecutive texts of about `_CHARS_PER_WINDOW` characters, at least one."""
    start = chars = 0
    for n, text in enumerate(texts):
        chars += len(text)
        if chars >= _CHARS_PER_WINDOW or n == len(texts) - 1:
            yield slice(start, n + 1)
            start, chars = n + 1, 0


def plan_batches(lengths: Sequence[int], budget: int, rows: Iterable[int] | None = None) -> Iterator[list[int]]:
    """Row numbers in batches of at most `budget` tokens, or of one document; documents of like length together."""
    batch: list[int] = []
    tokens = 0
    for n in sorted(range(len(lengths)) if rows is None else rows, key=lambda n: lengths[n]):
        if batch and tokens + lengths[n] > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(n)
        tokens += lengths[n]
    if batch:
        yield batch


def plan_cores(lengths: Sequence[int], cores: int) -> tuple[list[list[int]], list[list[int]]]:
    """Batches that all cores compute together, and those of which each core takes one after the other, longest first.

    A document that is longer than a core's share of all tokens would keep one core busy while the others wait.
    """
    rows = sorted(range(len(lengths)), key=lambda n: lengths[n])
    total, together = sum(lengths), []
    while rows and lengths[rows[-1]] * cores > _UNEVEN * total:
        total -= lengths[rows[-1]]
        together.append([rows.pop()])
    if total < _TOKENS_PER_CORE * cores or cores == 1:
        return together + list(plan_batches(lengths, TOKENS_PER_BATCH, rows)), []
    budget = min(TOKENS_PER_BATCH, -(-total // cores))
    short = [n for n in rows if lengths[n] <= SHORT]
    apart = list(plan_batches(lengths, budget, short)) + deal(lengths, rows[len(short) :], budget, cores)
    return together, sorted(apart, key=lambda batch: -sum(lengths[n] for n in batch))


def deal(lengths: Sequence[int], rows: Sequence[int], budget: int, cores: int) -> list[list[int]]:
    """Rows in as few batches for each core as keep to the budget, all of about as many tokens.

    The longest goes first, and each to the batch that has the fewest tokens (Graham 1969, doi:10.1137/0117039).
    """
    longest_first = sorted(rows, key=lambda n: -lengths[n])
    count = -(-sum(lengths[n] for n in rows) // (budget * cores)) * cores
    while True:
        batches = [(0, number, list[int]()) for number in range(min(count, len(rows)))]
        for n in longest_first:
            tokens, number, batch = batches[0]
            heapq.heapreplace(batches, (tokens + lengths[n], number, [*batch, n]))
        if all(tokens <= budget or len(batch) == 1 for tokens, _, batch in batches):
            return [batch for _, _, batch in batches]
        count += cores * max(1, count // (32 * cores))


def on_cores(run: Callable[[Part], Result], parts: Sequence[Part], cores: int) -> Iterator[Result]:
    """What `run` makes of each part, in their order, by as many threads of one core as there are cores.

    The threads are new ones, so that they have the caller's cores and priority.
    """
    with ThreadPoolExecutor(min(cores, len(parts)), "embed", _take_one_core, (_cores(),)) as pool:
        yield from pool.map(run, parts)


def _cores() -> int:
    """How many cores torch has on this thread."""
    with _NUMBER:
        return torch.get_num_threads()


def _take_one_core(others: int) -> None:
    """Gives this thread one core, and threads that have yet to ask torch for their number the one from before.

    torch tells them, for good, whatever was set last on any thread.
    """
    with _NUMBER:
        torch.get_num_threads()  # or this thread, too, would be told later
        torch.set_num_threads(1)
        last = Thread(target=torch.set_num_threads, args=(others,))
        last.start()
        last.join()


def give_back_memory() -> None:
    """Lets the system have what was freed, which glibc keeps for later."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _build(model: models.Model, precision: str, device: str) -> Longformer:
    try:
        longformer = from_reference(model.longformer_config(), model.weights)
    except (KeyError, ValueError) as error:
        raise InvalidArgument(f"{model.name}'s weights do not fit its config.json: {error}", field="model") from error
    longformer = longformer.to(device, torch.float32 if precision == "fp32" else torch.bfloat16)
    if device == "cpu":
        prepare(longformer, precision)
    if precision == "int8":
        longformer.compile_softmax()  # its other kernels are compiled anyway
    return longformer


def _random_ids(model: models.Model) -> list[list[int]]:
    """Three documents for a model that has no tokenizer."""
    config = model.longformer_config()
    rng = np.random.default_rng(0)
    return [rng.integers(0, config.vocab_size, min(length, config.max_tokens)).tolist() for length in (20, 100, 300)]


def _choose_device(device: str) -> str:
    if device not in get_args(Device):
        raise InvalidArgument(f"device {device!r} is none of {', '.join(get_args(Device))}", field="device")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InvalidArgument("device 'cuda' was asked for, and torch finds none; use 'cpu' or 'auto'", field="device")
    return "cuda" if available and device != "cpu" else "cpu"


def _choose_precision(precision: str, device: str, hidden: int) -> str:
    if precision not in get_args(Precision):
        raise InvalidArgument(f"precision {precision!r} is none of {', '.join(get_args(Precision))}", field="precision")
    if precision == "int8" and device == "cuda":
        raise InvalidArgument(
            "precision 'int8' runs on the CPU only; use 'bf16' on a GPU, or 'auto'", field="precision"
        )
    if device == "cuda":
        return "bf16" if precision == "auto" else precision
    if precision == "auto":
        return "int8" if runs("int8") and hidden >= _INT8_PAYS_FROM else _wide()
    if runs(precision):
        return precision
    lacks = "bytes in 32 bits (VNNI, AMX)" if runs("bf16") else "bf16 (AVX-512, AVX-NE-CONVERT, AMX)"
    message = f"this processor has no instructions for {lacks}, which {precision} needs; the model runs in {_wide()}"
    warnings.warn(message, PrecisionWarning, stacklevel=4)
    return _wide()


def _wide() -> str:
    """The fastest precision above int8."""
    return "bf16" if runs("bf16") and multiplies_bf16() else "fp32"
