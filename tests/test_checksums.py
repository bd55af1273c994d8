"""Checksums of files, read when they are asked for and ahead of that."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coldframe import checksums

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"small": 10, "empty": 0, "large": 2 * checksums._BLOCK + 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(np.random.default_rng(size).bytes(size))
    return tmp_path


def wanted(folder: Path) -> dict[str, dict[str, object]]:
    return {
        name: {"size": size, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for name, size in SIZES.items()
    }


def found(folder: Path) -> dict[str, dict[str, object]]:
    return {name: future.result() for name, future in checksums.described(folder, SIZES).items()}


def test_every_file_has_its_size_and_checksum(folder: Path) -> None:
    assert found(folder) == wanted(folder)


def test_what_was_read_ahead_is_the_same_and_counts_once(folder: Path) -> None:
    checksums.read_ahead(folder)
    before = wanted(folder)
    assert found(folder) == before
    (folder / "large").write_bytes(b"another")
    now = {**before, "large": {"size": 7, "sha256": hashlib.sha256(b"another").hexdigest()}}
    assert found(folder) == now


def test_what_was_read_ahead_and_not_asked_for_is_forgotten(folder: Path, tmp_path: Path) -> None:
    checksums.read_ahead(folder)
    checksums.described(tmp_path, [])
    (folder / "large").write_bytes(b"another")
    assert found(folder)["large"]["size"] == 7


def test_what_cannot_be_read_is_told_when_it_is_asked_for(folder: Path) -> None:
    checksums.read_ahead(folder / "nothing")
    checksums.read_ahead(folder / "small")
    with pytest.raises(FileNotFoundError):
        checksums.described(folder, ["nothing"])["nothing"].result()
