"""The rotation before codes of signs: it turns and nothing else, one as many, and spreads what it turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.rotation import Rotation
from tests.test_index import random_units


@given(dim=st.integers(1, 1_100), seed=st.integers(0, 99))
def test_lengths_and_inner_products_stay_as_they_are(dim: int, seed: int) -> None:
    vectors = random_units(6, seed, dim)
    turned = Rotation(dim)(vectors)
    assert turned.shape == vectors.shape
    assert turned.dtype == np.float32
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=2e-6)


@pytest.mark.parametrize("dim", [1, 7, 48, 384, 768, 769])
def test_one_vector_is_turned_as_many_are(dim: int) -> None:
    vectors = random_units(5, 3, dim)
    np.testing.assert_allclose(Rotation(dim)(vectors), [Rotation(dim)(one) for one in vectors], atol=1e-6)


def test_two_of_a_length_turn_alike_and_no_component_stays() -> None:
    unit = np.eye(768, dtype=np.float32)
    matrix = Rotation(768)(unit)
    assert (matrix == Rotation(768)(unit)).all()
    # What lay in one component lies in all: none has more than a few times its share.
    assert np.abs(matrix).max() <= 2.01 / np.sqrt(768)
    assert (np.count_nonzero(np.abs(matrix) > 1e-4, axis=1) > 700).all()


def test_components_of_unlike_spread_are_alike_afterwards() -> None:
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.01, 384)
    vectors = (rng.standard_normal((4_000, 384)) * spread).astype(np.float32)
    before, after = vectors.std(axis=0), Rotation(384)(vectors).std(axis=0)
    assert before.max() / before.min() > 80
    assert after.max() / after.min() < 3
