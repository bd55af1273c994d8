"""One bit that flips in any file of a built generation: `verify` finds it, and the server does not serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coldframe import settings
from coldframe.errors import CorruptGeneration
from coldframe.store import Store
from indexer.__main__ import app
from server.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path

FILES = ["articles.arrow", "clusters.json", "index.faiss", "manifest.json", "mean.npy", "report.html", "vectors.npy"]


def folder(store: Path) -> Path:
    current = Store(store).current()
    assert current is not None
    return Store(store).directory(current)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_these_are_all_files_of_a_generation(store_path: Path) -> None:
    assert sorted(path.name for path in folder(store_path).iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_refused(own_store: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(own_store) / name
    for bit in (3, 12_345, 8 * path.stat().st_size - 1):
        flip(path, bit)
        with pytest.raises(SystemExit) as ended:
            settings.run(app, prog="indexer", prefix="X", args=["verify", "--store", str(own_store)])
        assert (ended.value.code, name in capsys.readouterr().err) == (1, True)
        with pytest.raises(CorruptGeneration, match=name):
            Engine(Store(own_store), precision="fp32").load()
        flip(path, bit)
    Store(own_store).open()
