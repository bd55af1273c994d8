"""Coldframe: recommendations on the first day, from text alone.

    from coldframe import Client, Encoder

`Client`, its asyncio twin `AsyncClient` and what their questions are made of (`seed`, `filters`, `article` and so on)
need grpcio and protobuf only. `Encoder` needs the `[encoder]` extra and is imported when first used, so that a backend
which only asks questions never loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe import filters
from coldframe.async_client import AsyncClient
from coldframe.client import Client
from coldframe.errors import (
    ColdframeError,
    CorruptGeneration,
    DeadlineExceeded,
    FailedPrecondition,
    FingerprintMismatch,
    InternalError,
    InvalidArgument,
    ModelUnavailable,
    NoGeneration,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    UnknownArticle,
    UnknownCluster,
    UnknownGeneration,
)
from coldframe.messages import article
from coldframe.requests import expansion, recommend_request, search_request, seed

if TYPE_CHECKING:
    from coldframe.encoder import Encoder

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "ColdframeError",
    "CorruptGeneration",
    "DeadlineExceeded",
    "Encoder",
    "FailedPrecondition",
    "FingerprintMismatch",
    "InternalError",
    "InvalidArgument",
    "ModelUnavailable",
    "NoGeneration",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Unauthenticated",
    "Unavailable",
    "UnknownArticle",
    "UnknownCluster",
    "UnknownGeneration",
    "article",
    "expansion",
    "filters",
    "recommend_request",
    "search_request",
    "seed",
]


if not TYPE_CHECKING:  # a type checker that saw it would believe in every name

    def __getattr__(name: str) -> object:
        if name == "Encoder":
            from coldframe.encoder import Encoder

            return Encoder
        raise AttributeError(f"module 'coldframe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
