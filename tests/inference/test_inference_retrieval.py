"""Exact top k over blocks and devices, against float64 numpy."""

import ml_dtypes
import numpy as np
import pytest
from compilations import compilations
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import Mesh
from srsjax.inference.retrieval import ExactIndex
from srsjax.runs.sharding import make_mesh

MESH = make_mesh(Mesh(2, 2, 2))


def reference(queries, vectors, k):
    """Rows and products of the k largest, float64; equal ones in the order of the rows."""
    products = queries.astype(np.float64) @ np.asarray(vectors, np.float64).T
    rows = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, rows, axis=1), rows


@pytest.mark.parametrize(("count", "k", "block"), [(1000, 10, 8), (1000, 300, 16), (5, 3, 4), (17, 40, 64), (1, 1, 1)])
def test_the_top_k_are_those_of_numpy(count, k, block):
    rng = np.random.default_rng(0)
    # Multiples of 1/32 below 8: float32 sums 24 of their products exactly, so that nothing may differ.
    vectors, queries = (np.round(rng.standard_normal((rows, 24)) * 32).astype(np.float32) / 32 for rows in (count, 70))
    scores, rows = ExactIndex(vectors, MESH, block).search(queries, k)
    expected, expected_rows = reference(queries, vectors, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected)


@given(st.sampled_from((3, 60)), st.sampled_from((1, 5, 70)), st.integers(0, 2**32))
def test_equal_products_keep_the_order_of_the_items(count, k, seed):
    """Vectors of small whole numbers: products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    vectors, queries = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (count, 4))
    scores, rows = ExactIndex(vectors, MESH, block=4).search(queries, k)
    expected, expected_rows = reference(queries, vectors, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected)


def test_bfloat16_vectors_are_multiplied_in_float32():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((300, 16)).astype(ml_dtypes.bfloat16)
    queries = rng.standard_normal((3, 16)).astype(np.float32)
    scores, rows = ExactIndex(vectors, MESH, 32).search(queries, 20)
    expected, expected_rows = reference(queries, vectors, 20)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_no_search_compiles_after_warm_up():
    rng = np.random.default_rng(2)
    index = ExactIndex(rng.standard_normal((100, 8)).astype(np.float32), MESH)
    assert index.warm_up(20) == [16, 64] and index.warm_up(16) == [16]
    with compilations() as compiled:
        for queries in (1, 3, 64, 130):
            for k in (1, 5, 20, 64):
                index.search(rng.standard_normal((queries, 8)).astype(np.float32), k)
    assert compiled == []
