"""A user without rights."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights, where the tests run as root, whom no folder's mode stops."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)  # the real one, too, whom os.access asks for
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
