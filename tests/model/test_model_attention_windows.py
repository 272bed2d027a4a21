"""Windows of a row against whole rows: the same values and gradients wherever no part is longer than was promised."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import test_model_packing
from hypothesis import given, settings
from hypothesis import strategies as st

from srsjax import config
from srsjax.model import ctr
from srsjax.model.attention import Visibility, attend
from srsjax.model.attention_windows import Windows, cut, plain


def parts(rows: int, tokens: int, longest: int, seed: int) -> np.ndarray:
    """Ids [rows, tokens] int32 of consecutive parts of up to `longest` tokens, padding between some of them."""
    random = np.random.default_rng(seed)
    ids = np.zeros((rows, tokens), np.int32)
    for row in ids:
        at, part = 0, 1
        while at < tokens:
            end = at + random.choice([longest, random.integers(1, longest + 1)])
            row[at:end] = part
            at, part = end + random.integers(0, 3), part + 1
    return ids


def results(function, ids: np.ndarray, dtype: str) -> list[np.ndarray]:
    """Values and gradients of query, key and value [rows, tokens, 2, 8] at real tokens; finite ones at padding."""
    draws = [jax.random.normal(key, (*ids.shape, 2, 8)) for key in jax.random.split(jax.random.key(0), 4)]
    *operands, towards = (x.astype(dtype) for x in draws)
    visibility, real = Visibility(jnp.array(ids), jnp.array(ids)), (ids > 0)[:, :, None, None]

    def product(*operands):
        out = function(*operands, visibility)
        return jnp.where(real, out * towards, 0).astype(jnp.float32).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(product, (0, 1, 2), has_aux=True))(*operands)
    assert np.isfinite(np.asarray(out, np.float32)).all()
    return [np.asarray(x, np.float32) for x in (jnp.where(real, out, 0), *gradients)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])  # bfloat16 keeps 8 bits
@pytest.mark.parametrize(("tokens", "longest"), [(64, 9), (192, 42), (250, 64), (384, 96)])
def test_equal_to_whole_rows(tokens, longest, dtype, tolerance):
    ids = parts(3, tokens, longest, seed=tokens)
    assert plain(tokens, longest) == Windows(longest)
    for found, expected in zip(results(Windows(longest), ids, dtype), results(attend, ids, dtype), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1100), st.integers(1, 600))
def test_windows_hold_every_pair_of_a_part(tokens, longest):
    windows = cut(tokens, longest)
    assert [slot for begin, end, _, _ in windows for slot in range(begin, end)] == list(range(tokens))
    for begin, end, first, last in windows:
        assert first <= max(0, begin - longest + 1) and last >= min(tokens, end + longest - 1)
        assert first >= 0 and last <= tokens
    assert sum((end - begin) * (last - first) for begin, end, first, last in windows) <= tokens**2


def test_no_array_of_whole_rows_is_made():
    """The largest one of the compiled gradient is that of the windows' scores."""
    ids = jnp.array(parts(2, 192, 42, seed=0))
    x = jnp.zeros((2, 192, 2, 8))

    def program(function) -> str:
        gradient = jax.grad(lambda x: function(x, x, x, Visibility(ids, ids)).sum())
        return jax.jit(gradient).lower(x).compile().as_text()

    assert "[2,2,192,192]" in program(attend)
    assert "192,192" not in program(Windows(42)) and "[2,2,96,144]" in program(Windows(42))


def test_dropout_keeps_the_mean_and_differs_between_windows():
    ids = jnp.ones((1, 192), jnp.int32) * (1 + jnp.arange(192) // 32)
    query, value = jnp.zeros((1, 192, 64, 8)), jnp.ones((1, 192, 64, 8))  # every key of a part weighs the same
    out = Windows(32)(query, query, value, Visibility(ids, ids), 0.25, jax.random.key(0))[..., 0]
    # 192 x 64 sums of 32 kept or dropped values: their mean deviates by sqrt(1/3 / 32 / 12288).
    assert abs(out.mean() - 1) < 5 * np.sqrt(1 / 3 / 32 / 12288)
    halves = np.split(np.asarray(out), 2, axis=1)
    assert not np.array_equal(*halves)


def test_whole_rows_where_windows_save_nothing_or_nobody_knows():
    assert plain(128, 0) is attend
    assert plain(128, 100) is attend and cut(128, 100) == [(0, 128, 0, 128)]


def test_contexts_are_seen_from_as_far_as_ever():
    segment = parts(2, 192, 90, seed=1)
    candidate = np.where(np.arange(192) % 90 > 30, segment, 0).astype(np.int32)
    shared = Visibility.shared(segment, candidate)
    query, key, value = (jax.random.normal(k, (2, 192, 2, 8)) for k in jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(Windows(31)(query, key, value, shared), attend(query, key, value, shared))


@pytest.mark.parametrize("slots", [8, 64])
def test_read_outs_see_their_whole_part(monkeypatch, slots):
    """The last layer's queries are in the order of candidate slots, also where there are as many as tokens."""
    monkeypatch.setattr(test_model_packing, "LENGTH", 64)
    monkeypatch.setattr(test_model_packing, "SLOTS", slots)
    pairs = np.random.default_rng(0).integers(1, 199, (7, 9), dtype=np.int32)
    batch = test_model_packing.pack([[(0, slot, pair) for slot, pair in enumerate(pairs)]])
    model, bert = config.Model(dtype="float32"), test_model_packing.BERT
    params = models.init(model, bert, 1, jax.random.key(0))
    assert len(cut(64, 9)) > 1
    found, expected = (ctr.forward(models.build(model, bert, 1, way), params, batch) for way in (Windows(9), attend))
    np.testing.assert_allclose(found, expected, atol=1e-6)
