"""Attention against its formula written out, values and gradients, with and without dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.model.attention import Visibility, attend
from srsjax.model.dropout import dropout

SEGMENT = np.array([[1, 1, 1, 2, 2, 0], [2, 2, 2, 2, 1, 1], [0, 0, 0, 0, 0, 0]], np.int32)


def arrays():
    """Query, key and value [3, 6, 2, 4]; scores far from uniform."""
    return [2 * jax.random.normal(key, (3, 6, 2, 4)) for key in jax.random.split(jax.random.key(0), 3)]


def reference(query, key, value, rate, dropout_key):
    """Vaswani et al. 2017, equation 1, differentiated by JAX; pads see everything."""
    visible = (SEGMENT[:, :, None] == SEGMENT[:, None, :]) | (SEGMENT[:, :, None] == 0)
    visible &= (SEGMENT[:, None, :] > 0) | (SEGMENT[:, :, None] == 0)
    scores = jnp.einsum("rqhd,rlhd->rhql", query, key) / jnp.sqrt(query.shape[-1])
    probabilities = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
    return jnp.einsum("rhql,rlhd->rqhd", dropout(probabilities, rate, dropout_key), value)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_values_and_gradients(rate):
    key = jax.random.key(1) if rate else None
    towards = jax.random.normal(jax.random.key(2), (3, 6, 2, 4)) * (SEGMENT > 0)[:, :, None, None]

    def ours(*operands):
        return (attend(*operands, Visibility(jnp.array(SEGMENT), jnp.array(SEGMENT)), rate, key) * towards).sum()

    def theirs(*operands):
        return (reference(*operands, rate, key) * towards).sum()

    found, found_gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*arrays())
    expected, expected_gradients = jax.jit(jax.value_and_grad(theirs, (0, 1, 2)))(*arrays())
    # Values of order 1 to 10, sums of a few float32 terms.
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_pads_give_finite_numbers():
    out = attend(*arrays(), Visibility(jnp.array(SEGMENT), jnp.array(SEGMENT)))
    assert np.isfinite(out).all()


def test_queries_at_some_slots_only():
    query, key, value = arrays()
    slots, everywhere = jnp.array([[3, 0], [4, 0], [0, 0]]), Visibility(jnp.array(SEGMENT), jnp.array(SEGMENT))
    expected = jnp.take_along_axis(attend(query, key, value, everywhere), slots[:, :, None, None], axis=1)
    some = jnp.take_along_axis(query, slots[:, :, None, None], axis=1)
    np.testing.assert_allclose(attend(some, key, value, everywhere.at(slots)), expected, rtol=1e-5, atol=1e-6)
