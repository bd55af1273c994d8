"""What a model may be computed in, and on what: for flags, which import no torch to name them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "int8"]
Device = Literal["auto", "cpu", "cuda"]
