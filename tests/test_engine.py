"""What callers of the engine rely on, beside the wire."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from coldframe.longformer import Longformer
from coldframe.store import Store
from server.engine import Engine, Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest
    import torch

    from coldframe.recipe import Recipe


def test_all_that_torch_computes_it_computes_on_one_thread(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    forward = Longformer.forward

    def spied(
        self: Longformer,
        documents: Sequence[Sequence[int]],
        recipes: Sequence[Recipe],
        between: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        names.append(threading.current_thread().name)
        return forward(self, documents, recipes, between)

    monkeypatch.setattr(Longformer, "forward", spied)
    engine = Engine(Store(store_path), precision="fp32")

    async def ask() -> None:
        await asyncio.to_thread(engine.load)
        served = engine.served()
        await asyncio.gather(*(engine.embed(served, [text], Timing()) for text in ("rain", "wind", "snow")))
        await engine.close()

    asyncio.run(ask())
    assert len(names) >= 2, "it was warmed, and asked"
    assert set(names) == {"compute_0"}
