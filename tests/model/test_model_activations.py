"""Activations and their slopes against their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.model.bert import ACTIVATIONS

X = np.linspace(-12, 12, 20001)


def density(x: np.ndarray) -> np.ndarray:
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def tanh_form(x: np.ndarray) -> np.ndarray:
    """Hendrycks and Gimpel 2016, section 2."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


share = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in X])  # of a standard normal below x
EXPECTED = {
    "gelu": (X * share, share + X * density(X)),
    "gelu_new": (tanh_form(X), np.gradient(tanh_form(X), X)),
    "relu": (np.maximum(X, 0), (X > 0) + 0.5 * (X == 0)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_and_slopes(name):
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(ACTIVATIONS[name])))(jnp.array(X, jnp.float32))
    expected_values, expected_slopes = EXPECTED[name]
    inner = (X != 0) if name == "relu" else np.ones(len(X), bool)  # any slope is right at the kink
    # float32: erf and tanh are right to 1 part in 10^7 of 1, and that is multiplied by x, in the slope of the tanh form
    # by (1 + 0.13 x^2) x / 2 where it is not yet flat.
    np.testing.assert_allclose(values, expected_values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.asarray(slopes)[inner], expected_slopes[inner], rtol=1e-5, atol=1e-5)
