"""The share that is dropped, the mean that is kept, and bits that depend on key and shape alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.model.dropout import dropout, random_bytes, random_words


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_share_and_mean(rate):
    x = jnp.ones((1000, 1001))
    kept = np.asarray(dropout(x, rate, jax.random.key(0)))
    expected = 1 - round(256 * rate) / 256
    assert abs(expected - (1 - rate)) < 1 / 512
    share = (kept > 0).mean()
    deviation = np.sqrt(expected * (1 - expected) / x.size)
    assert abs(share - expected) < 4 * deviation
    # The scale is the inverse of the exact keep probability: the mean is off by the share's own deviation only.
    assert abs(kept.mean() - 1) < 4 * deviation / expected
    np.testing.assert_allclose(kept[kept > 0], 1 / expected, rtol=1e-6)


def test_scale_in_bfloat16_is_rounded_once():
    kept = np.asarray(dropout(jnp.full((64, 64), 3.0, jnp.bfloat16), 0.1, jax.random.key(0)).astype(jnp.float32))
    assert set(np.unique(kept)) == {0.0, float(jnp.bfloat16(3 * 256 / 230))}


def test_bytes_are_uniform_and_independent_of_their_neighbours():
    data = np.asarray(random_bytes(jax.random.key(1), (512, 1024)))
    counts = np.bincount(data.ravel(), minlength=256)
    # Chi-squared with 255 degrees of freedom: mean 255, deviation 22.6.
    assert ((counts - 2048) ** 2 / 2048).sum() < 255 + 5 * 22.6
    centred = data.astype(np.float64) - 127.5
    for shift in (1, 2, 3, 4):
        correlation = (centred[:, shift:] * centred[:, :-shift]).mean() / centred.var()
        assert abs(correlation) < 5 / np.sqrt(data.size)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 5), (0, 3), (100, 1000)])
def test_words_are_those_of_jax(shape):
    key = jax.random.fold_in(jax.random.key(7), 3)
    words = jax.jit(lambda key: random_words(key, shape))(key)
    np.testing.assert_array_equal(words, jax.random.bits(key, shape, "uint32"))


def test_too_many_words_are_refused():
    with pytest.raises(ValueError, match=r"2\^32 words or more"):
        jax.eval_shape(lambda key: random_words(key, (2**16, 2**16)), jax.random.key(0))


def test_same_key_same_bits_and_none_is_the_identity():
    x, key = jnp.ones((8, 6)), jax.random.key(2)
    np.testing.assert_array_equal(dropout(x, 0.5, key), dropout(x, 0.5, key))
    assert not np.array_equal(dropout(x, 0.5, key), dropout(x, 0.5, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, key), x)


@pytest.mark.parametrize("spec", [("rows", None), (None, "width"), ("rows", "width")])
def test_bits_do_not_depend_on_sharding(spec):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices (JAX_NUM_CPU_DEVICES)")
    automatic = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("rows", "width"), axis_types=automatic, devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    x = jnp.arange(1.0, 16 * 64 + 1).reshape(16, 64)
    key = jax.random.key(4)
    sharded = jax.jit(lambda x: dropout(x, 0.3, key), in_shardings=sharding, out_shardings=sharding)(x)
    np.testing.assert_array_equal(sharded, dropout(x, 0.3, key))
