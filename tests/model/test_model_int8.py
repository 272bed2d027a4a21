"""8-bit weights: their numbers against qwix and float64, and that a token does not depend on those beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from srsjax.model.dense import contract
from srsjax.model.int8 import Quantized, dequantize, flat, from_flat, int8_dot, lookup, quantize

RNG = np.random.default_rng(0)
PRODUCT = (((1,), (0,)), ((), ()))


def weight(*shape: int) -> np.ndarray:
    """Channels of very different sizes."""
    return (RNG.normal(size=shape) * np.exp(RNG.normal(size=shape[-1]))).astype(np.float32)


@pytest.mark.parametrize(("shape", "summed"), [((24, 16), 0), ((24, 3, 8), 0), ((30, 16), 1)])
def test_weights_are_those_of_qwix(shape, summed):
    qwix = pytest.importorskip("qwix", reason="needs qwix: pip install -e '.[float8]'")
    own = weight(*shape)
    kept = [axis for axis in range(own.ndim) if axis != summed]
    theirs = qwix.quantize(jnp.array(own), jnp.int8, channelwise_axes=kept)
    made = quantize(own, (summed,))
    assert made.values.dtype == np.int8 and made.scale.dtype == np.float32
    # qwix divides by 127.5 and we by 127, so that no number needs clipping: their steps differ by 0.4 %, and a
    # number is at most one step further on the other grid.
    ratio = np.asarray(theirs.scale).reshape(made.scale.shape) / made.scale
    np.testing.assert_allclose(ratio, 127 / 127.5, rtol=1e-5)
    assert np.abs(made.values.astype(int) - np.asarray(theirs.qvalue).astype(int)).max() <= 1


def test_a_weight_is_off_by_at_most_half_a_step():
    own = weight(24, 16)
    own[:, 3] = 0
    made = quantize(own, (0,))
    assert (np.abs(dequantize(made) - own) <= made.scale * (0.5 + 1e-4)).all()
    assert (np.abs(made.values).max(axis=0)[np.arange(16) != 3] == 127).all()
    assert (dequantize(made)[:, 3] == 0).all()


def test_the_product_is_the_sum_of_integers():
    """Against integers and float64 in numpy; what is left is the rounding of float32."""
    a, b = RNG.normal(size=(5, 24)).astype(np.float32), quantize(weight(24, 16), (0,))
    scale = np.abs(a).max(axis=1, keepdims=True) / np.float32(127)
    q = np.rint(a / scale).astype(np.int64)
    expected = (q @ b.values.astype(np.int64)) * scale.astype(np.float64) * b.scale
    np.testing.assert_allclose(int8_dot(jnp.array(a), b, PRODUCT), expected, rtol=1e-6)


@pytest.mark.parametrize(("spec", "shape"), [("rli,io->rlo", (24, 16)), ("rld,dpe->rlpe", (24, 3, 8))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_contract_takes_a_quantised_weight(spec, shape, dtype):
    x, own = jnp.array(RNG.normal(size=(2, 7, 24)), dtype), weight(*shape)
    found = contract(spec, x, quantize(own, (0,)))
    expected = np.einsum(spec, np.asarray(x, np.float64), own.astype(np.float64))
    assert found.dtype == jnp.float32 and found.shape == expected.shape
    # Both operands are off by at most 1/254 of their largest number; sums of 24 such errors are of random sign.
    error = np.sqrt(np.mean((found - expected) ** 2, axis=(0, 1)) / np.mean(expected**2, axis=(0, 1)))
    assert 1e-4 < error.max() < 0.02


@given(arrays.arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=16)), st.floats(1, 1e6, width=32))
def test_a_token_does_not_depend_on_its_neighbours(x, loud):
    b = quantize(np.linspace(-1, 1, 48, dtype=np.float32).reshape(8, 6), (0,))
    together = np.concatenate([x, np.full((1, 8), loud, np.float32)])
    np.testing.assert_array_equal(int8_dot(jnp.array(together), b, PRODUCT)[:3], int8_dot(jnp.array(x), b, PRODUCT))


def test_a_table_is_looked_up_by_rows():
    own = weight(20, 8)
    made = quantize(own, (1,))
    ids = jnp.array([[0, 19, 7]])
    np.testing.assert_allclose(lookup(made, ids), dequantize(made)[np.asarray(ids)])
    assert np.isnan(lookup(made, jnp.array([[20]]))).all()


def test_parameters_are_arrays_in_files():
    params = {"a/kernel": quantize(weight(4, 3), (0,)), "a/bias": np.zeros(3), "norm/scale": np.ones(3)}
    arrays = flat(params)
    assert sorted(arrays) == ["a/bias", "a/kernel/int8_scale", "a/kernel/int8_values", "norm/scale"]
    again = from_flat(arrays)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert isinstance(again["a/kernel"], Quantized) and again["a/kernel"].shape == (4, 3)
