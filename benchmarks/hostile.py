"""Requests that nobody should send: of any message, from its descriptor, by a seed.

A request is drawn with three dials: how many of its fields are set, how many of those hold something hostile, and
whether its bytes are damaged in the end. Most of a request must be valid, or nothing but the first check is reached.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor as Field

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

# protobuf takes no lone surrogate from Python: bytes as long as this mark are put in its place.
_MARK, _SURROGATES = b"SURROGATE", b"\xed\xa0\x80" * 3
STRINGS = (
    *(
        "",
        " ",
        "\t\n",
        "\0",
        "a\0b",
        "\ufeff",
        "\u202eabc",
        "\ufffd",
        "a\u0301" * 40,
        "\U0001d54f🗞" * 30,
        "\uff11\uff12",
        "Ärger/über 100%",
    ),
    *("%s%n%x", "'; DROP TABLE articles; --", "../../etc/passwd", "NaN", "-0", "1e999", "0x10", "null", "[0]", "a.b"),
    *("x" * 129, "y" * 513, "z" * 4_097, _MARK.decode(), "2024-13-45", "article", "article.", "score.x", "*"),
)
_INTS = (0, -1, 1, 2, 3, 16, 17, 100, 101, 1_000, 1_001, 10_001, 2**31 - 1, -(2**31))
_LONGS = (*_INTS, 2**63 - 1, -(2**63), 253_402_300_800, -62_135_596_801, 10**12)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, 1e-30, 3.4e38, -3.4e38, 1e-3, float("inf"), float("-inf"), float("nan"))
_LENGTHS = (0, 1, 2, 3, 9, 65, 101, 257, 1_001)
_MANY, _MANY_ARE_SHORT = 10_001, 64
_DEEPEST = 6
_ABOUT = frozenset(["seed", "seeds", "texts", "articles", "ids", "id", "cluster_id", "requests", "request", "filters"])
_LONG_TEXT = 1_000_001
_EMBEDDED, _FEW, _TOO_MANY = frozenset(["texts", "articles", "seeds", "requests"]), 9, 257
_SELDOM = {"text": 0.3, "article": 0.3}  # each is a few milliseconds of the encoder's
_WORDS = ("rate", "cut", "rain", "goal", "vote", "film", "storm", "bank", "court", "train")


@dataclass(frozen=True)
class World:
    """What the index holds: without it nothing valid can be asked."""

    dim: int
    ids: Sequence[str]
    """Articles that may be asked about, replaced and deleted."""
    clusters: Sequence[str]
    attributes: dict[str, Sequence[str]]
    """Names, and some values of each."""
    paths: Sequence[str]
    """Of a read_mask."""
    generations: Sequence[str]
    """That may be activated."""


class Hostile:
    """Draws requests, the same ones for the same seed."""

    def __init__(self, world: World, seed: str) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._present = self._random.choice((0.1, 0.3, 0.6, 0.9))
        self._bad = self._random.choice((0.0, 0.0, 0.02, 0.1, 0.3, 1.0))
        self._damaged = self._random.random() < 0.15
        self._room = self._random.choice((50, 500, 20_000))

    def payload(self, message: Message) -> bytes:
        """The bytes of a request of that type, or what is left of them."""
        self.fill(message)
        raw = message.SerializeToString().replace(_MARK, _SURROGATES)
        return self._damage(raw) if self._damaged else raw

    def fill(self, message: Message, depth: int = 0) -> None:
        """Draws the fields of an empty message."""
        kind = message.DESCRIPTOR
        if self._special(message):
            return
        for oneof in kind.oneofs:
            members = [f for f in cast(list[Field], oneof.fields) if depth < _DEEPEST or f.message_type is None]
            synthetic = len(oneof.fields) == 1 and oneof.name.startswith("_")
            if not synthetic and members and self._random.random() > 0.05 + self._bad / 4:
                self._set(message, self._random.choices(members, [_SELDOM.get(f.name, 1.0) for f in members])[0], depth)
        for field in cast(list[Field], kind.fields):
            alone = field.containing_oneof is None or field.containing_oneof.name.startswith("_")
            deep = field.message_type is not None and depth >= _DEEPEST
            if alone and not deep and self._random.random() < self._chance(field):
                self._set(message, field, depth)

    def _chance(self, field: Field) -> float:
        """What a request is about is nearly always there; ways to say the same thing twice seldom."""
        if field.name in {"title", "content"}:
            return 0.8
        if field.name in _ABOUT:
            return 0.97
        return self._present / 4 if field.name in {"effort", "target_recall", "page_token"} else self._present

    def _set(self, message: Message, field: Field, depth: int) -> None:
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            self._set_map(message, field, depth)
        elif field.is_repeated:
            self._set_repeated(message, field, depth)
        elif field.message_type is not None:
            inside = getattr(message, field.name)
            inside.SetInParent()
            self.fill(inside, depth + 1)
        else:
            setattr(message, field.name, self._value(field))

    def _set_map(self, message: Message, field: Field, depth: int) -> None:
        assert field.message_type is not None, "a map is of entries"
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        entries = getattr(message, field.name)
        for _ in range(self._length(depth)):
            name = self._random.choice([*self._world.ids, *self._world.attributes]) if not self._turns() else None
            entries[name if name is not None else self._value(key)] = self._value(value)

    def _set_repeated(self, message: Message, field: Field, depth: int) -> None:
        values = getattr(message, field.name)
        if field.name == "values" and field.type == Field.TYPE_FLOAT:
            values.extend(self._vector().tolist())
            return
        length = self._length(depth)
        if field.name in _EMBEDDED and length > _FEW:  # many texts would be work, and not hostile: too many are refused
            blank = "w" if field.message_type is None else message_factory.GetMessageClass(field.message_type)()
            values.extend([blank] * _TOO_MANY)
        elif field.message_type is not None:
            for _ in range(length):
                self.fill(values.add(), depth + 1)
        elif length > len(_WORDS):
            value = self._value(field)
            alike = self._random.random() < 0.5 and (not isinstance(value, str) or len(value) <= _MANY_ARE_SHORT)
            values.extend([value] * length if alike or not isinstance(value, str) else map(str, range(length)))
        else:
            values.extend(self._value(field) for _ in range(length))

    def _length(self, depth: int) -> int:
        if not self._turns() or depth > 2:
            return self._random.choice((1, 1, 2, 3))
        length = self._random.choice((*_LENGTHS, _MANY if depth < 2 else 3))
        self._room -= length
        return length if self._room > 0 else 1  # many of many of many: no message that a client could send

    def _turns(self) -> bool:
        """Whether something is hostile, this time."""
        return self._random.random() < self._bad

    # --- values ------------------------------------------------------------------------------------------------------

    def _value(self, field: Field) -> Any:
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values]
            return self._random.choice((99, -1, 2**31 - 1) if self._turns() else known)
        if field.type == Field.TYPE_STRING:
            assert field.containing_type is not None, "a field of a message"
            return self._string(field.name, field.containing_type.name)
        if field.type == Field.TYPE_BYTES:
            return self._packed()
        return self._number(field)

    def _number(self, field: Field) -> float:
        if field.type == Field.TYPE_BOOL:
            return self._random.random() < 0.5
        if field.type in {Field.TYPE_FLOAT, Field.TYPE_DOUBLE}:
            return self._random.choice(_FLOATS if self._turns() else (0.05, 0.3, 0.5, 1.0))
        hostile = _LONGS if field.type == Field.TYPE_INT64 else _INTS
        return self._random.choice(hostile if self._turns() else (1, 2, 3, 5, 10))

    def _string(self, name: str, owner: str) -> str:
        draw = self._random
        if self._turns():
            return "w" * _LONG_TEXT if draw.random() < 0.002 else draw.choice(STRINGS)
        if name in {"text", "texts", "title", "content", "correlation_id"}:
            return " ".join(draw.choices(_WORDS, k=draw.randint(1, 12)))
        return "" if name == "page_token" else draw.choice(self._known(name, owner))

    def _known(self, name: str, owner: str) -> Sequence[str]:
        """What a name in a request may stand for."""
        world = self._world
        if name == "generation":
            return world.generations
        if "cluster" in name or owner == "ClusterFilter":
            return world.clusters
        if name in {"key", "popularity_attribute"}:
            return [*world.attributes]
        if name == "values":
            return world.attributes[self._random.choice([*world.attributes])]
        return (*world.ids, f"new-{self._random.randint(0, 40)}")

    def _vector(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        random = np.random.default_rng(self._random.getrandbits(32))
        dim = self._world.dim
        if self._turns():
            dim = self._random.choice((0, 1, dim - 1, dim + 1, 4_096))
        vector = random.standard_normal(dim).astype(np.float32)
        if dim and self._turns():
            vector[random.integers(0, dim)] = self._random.choice(_FLOATS)
        if self._turns():
            with np.errstate(all="ignore"):
                vector *= np.float32(self._random.choice((0.0, 1e-42, 1e30)))
        return vector

    def _packed(self) -> bytes:
        raw = self._vector().astype("<f4").tobytes()
        return raw[: -self._random.randint(1, 3)] if self._turns() else raw

    def _special(self, message: Message) -> bool:
        """Messages whose values are not free."""
        make = _SPECIAL.get(message.DESCRIPTOR.full_name)
        if make is None:
            return False
        return make(self, message)

    def _timestamp(self, message: Any) -> bool:
        bad = self._turns()
        message.seconds = self._random.choice(_LONGS) if bad else 1_750_000_000 + self._random.randint(0, 10**7)
        message.nanos = self._random.choice(_INTS) if self._turns() else 0
        return True

    def _duration(self, message: Any) -> bool:
        message.seconds = self._random.choice(_LONGS) if self._turns() else self._random.randint(60, 10**6)
        message.nanos = self._random.choice(_INTS) if self._turns() else 0
        return True

    def _mask(self, message: Any) -> bool:
        paths = STRINGS if self._turns() else self._world.paths
        message.paths.extend(self._random.choices(paths, k=self._length(1)))
        return True

    def _filter(self, message: Any) -> bool:
        """Sometimes deeper than is allowed, and than protobuf can read; else as any other message."""
        if not self._turns() or self._random.random() < 0.7:
            return False
        for _ in range(self._random.choice((7, 8, 9, 40, 98, 120))):
            message = getattr(message, "not") if self._random.random() < 0.5 else message.all_of.filters.add()
        message.published.SetInParent()
        return True

    # --- bytes -------------------------------------------------------------------------------------------------------

    def _damage(self, raw: bytes) -> bytes:
        draw, way = self._random, self._random.randrange(5)
        if way == 0 or not raw:
            return draw.randbytes(draw.choice((1, 2, 7, 64, 1_000)))
        place = draw.randrange(len(raw))
        if way == 1:
            return raw[:place]
        if way == 2:
            return raw[:place] + draw.randbytes(draw.randint(1, 8)) + raw[place:]
        if way == 3:
            return raw + raw[place:]
        damaged = bytearray(raw)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        return bytes(damaged)


_SPECIAL: dict[str, Callable[[Hostile, Any], bool]] = {
    "google.protobuf.Timestamp": Hostile._timestamp,
    "google.protobuf.Duration": Hostile._duration,
    "google.protobuf.FieldMask": Hostile._mask,
    "coldframe.v1.Filter": Hostile._filter,
}
