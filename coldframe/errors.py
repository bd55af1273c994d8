"""Every error that Coldframe raises on purpose.

    ColdframeError
    ├── InvalidArgument          INVALID_ARGUMENT     a field, what was given, what is allowed
    ├── NotFound                 NOT_FOUND
    │   ├── UnknownArticle
    │   ├── UnknownCluster
    │   └── UnknownGeneration
    ├── FailedPrecondition       FAILED_PRECONDITION
    │   ├── NoGeneration                              nothing has been published yet
    │   ├── FingerprintMismatch                       the encoder is not the one that built the index
    │   └── ModelUnavailable                          weights that cannot be had or read
    ├── Overloaded               RESOURCE_EXHAUSTED   come back after `retry_after_s`
    ├── CorruptGeneration        DATA_LOSS            a file that is not what the manifest says
    ├── Unauthenticated          UNAUTHENTICATED
    ├── PermissionDenied         PERMISSION_DENIED
    ├── Unavailable              UNAVAILABLE          no server answers
    ├── DeadlineExceeded         DEADLINE_EXCEEDED    no answer in time
    └── InternalError            INTERNAL             a fault of the server's; its log knows more

The server raises them, one interceptor puts them on the wire, and the client raises the same class again.
A message is one sentence or two for a person: what was wrong, what is allowed, what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ColdframeError(Exception):
    """The root. `code` is the name of the gRPC status that stands for the class on the wire."""

    code: ClassVar[str] = "UNKNOWN"

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self)


class InvalidArgument(ColdframeError):
    """A value that is not allowed. `field` names it the way the caller wrote it: a proto path, a flag, a parameter."""

    code = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class NotFound(ColdframeError):
    """Something named by an id that is not there."""

    code = "NOT_FOUND"


class UnknownArticle(NotFound):
    """No article with that id in the index."""


class UnknownCluster(NotFound):
    """No cluster with that id in the index."""


class UnknownGeneration(NotFound):
    """No generation with that name in the store."""


class FailedPrecondition(ColdframeError):
    """The request is fine; the system is not in a state to serve it."""

    code = "FAILED_PRECONDITION"


class NoGeneration(FailedPrecondition):
    """The store has no published generation."""


class FingerprintMismatch(FailedPrecondition):
    """The encoder at hand is not the one that built the generation: its vectors live in another space."""


class ModelUnavailable(FailedPrecondition):
    """A model that cannot be found, fetched or trusted."""


class Overloaded(ColdframeError):
    """The server has more work than it can hold. Retry after `retry_after_s` seconds."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CorruptGeneration(ColdframeError):
    """A file of a generation is missing, cut short or altered."""

    code = "DATA_LOSS"


class Unauthenticated(ColdframeError):
    """The caller did not prove who it is: it sent no key, or one that the server does not take."""

    code = "UNAUTHENTICATED"


class PermissionDenied(ColdframeError):
    """The caller is known, and its role does not reach so far."""

    code = "PERMISSION_DENIED"


class Unavailable(ColdframeError):
    """No server answers at that address, or the one that does is stopping."""

    code = "UNAVAILABLE"


class DeadlineExceeded(ColdframeError):
    """The answer did not come within the caller's timeout."""

    code = "DEADLINE_EXCEEDED"


class InternalError(ColdframeError):
    """A fault of the server's own."""

    code = "INTERNAL"


def error_classes() -> dict[str, type[ColdframeError]]:
    """Every class of the tree by name, parents before children."""
    found: dict[str, type[ColdframeError]] = {}
    queue: list[type[ColdframeError]] = [ColdframeError]
    while queue:
        cls = queue.pop(0)
        found[cls.__name__] = cls
        queue.extend(cls.__subclasses__())
    return found
