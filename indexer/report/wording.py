"""Numbers as people say them."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """0.123 -> "12.3%"; what is not quite nothing, or not quite all, is not written as if it were."""
    if not math.isfinite(share):
        return "unknown"
    text = f"{share:.1%}"
    if text == "0.0%" and share > 0:
        return "under 0.1%"
    if text == "100.0%" and share < 1:
        return "over 99.9%"
    return {"0.0%": "0%", "100.0%": "100%"}.get(text, text)


def duration(seconds: float) -> str:
    """4.21 -> "4.2 s", 300 -> "5.0 min"."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def mebibytes(mib: float) -> str:
    """0.42 -> "0.4 MiB", 512 -> "512 MiB", 2048 -> "2.0 GiB"."""
    if mib < 0.05:
        return "under 0.1 MiB"
    if mib < 1000:
        return f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"
    return f"{mib / 1024:,.1f} GiB"


def count(number: float, noun: str, plural: str | None = None) -> str:
    """2, "article" -> "2 articles", 1.5 -> "1.5 articles"."""
    return f"{round(number, 1):,.10g} {noun if number == 1 else plural or noun + 's'}"
