"""Ranked calls: seeds in, rows in their order out. Everything here runs on a search thread, over one view.

A call that sorts by similarity alone reads on until its page is full. One that ranks by more takes the nearest
`POOL` articles of every interest and puts those in order; what lies farther away is not looked at, so that the order of
one page does not depend on the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from server.interests import Interest, group, negative_part
from server.ranking import Candidates, Options, Ranked, merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from server.seeds import Point
    from server.view import Allowed, View
    from server.wire.ranking import Ask

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]

POOL = 1_000
"""Candidates of an interest that are ranked by more than similarity."""
MOST_PAGED = 10_000
_SPARE = 8
