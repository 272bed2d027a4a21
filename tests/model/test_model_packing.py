"""A pair's logits do not depend on its neighbours, its place or the padding; nor do gradients leak between pairs."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from batches import make_batch
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from srsjax import config
from srsjax.data.batches.batch import PackedBatch
from srsjax.model import ctr
from srsjax.model.bert import BertConfig

READOUTS = ["pooled", "first", "mean"]
LENGTH, SLOTS, PAD = 32, 4, 0
BERT = BertConfig(vocab_size=200, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=32)


@functools.cache
def model(readout: str, dtype: str = "float32"):
    """(graphdef, params) with weights large enough that attention is far from uniform."""
    model_config = config.Model(readout=readout, dtype=dtype)
    bert = BertConfig(**{**vars(BERT), "has_pooler": readout == "pooled"})
    params = models.init(model_config, bert, 2, jax.random.key(0))
    params = {path: 10 * array if path.endswith(("kernel", "embedding")) else array for path, array in params.items()}
    return models.build(model_config, bert, 2), params


forward = jax.jit(ctr.forward, static_argnums=0)


def pack(rows: list[list[tuple[int, int, np.ndarray]]]) -> PackedBatch:
    """Rows of (pads before it, candidate slot, tokens)."""
    shape, slots = (len(rows), LENGTH), (len(rows), SLOTS)
    tokens = np.full(shape, PAD, np.int32)
    positions, token_types, segment = (np.zeros(shape, np.int32) for _ in range(3))
    readout, context_of = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for pads, slot, pair in row:
            at += pads
            here = slice(at, at + len(pair))
            tokens[r, here] = pair
            positions[r, here] = np.arange(len(pair))
            token_types[r, here] = np.arange(len(pair)) >= len(pair) // 2
            segment[r, here] = slot + 1
            readout[r, slot], context_of[r, slot] = at, slot
            at += len(pair)
    weights = np.zeros((*slots, 2), np.float32)
    for r, row in enumerate(rows):
        weights[r, [slot for _, slot, _ in row]] = 1
    slots = {"context_readout": readout, "readout": readout, "context_of": context_of, "group": context_of}
    text = {"positions": positions, "token_types": token_types, "segment": segment}
    return make_batch(tokens, **text, **slots, labels=weights, weights=weights)


@st.composite
def packed_rows(draw):
    """Two rows of up to four pairs in random slots, with pads between them."""
    rows = []
    for _ in range(2):
        slots = draw(st.permutations(range(SLOTS)))[: draw(st.integers(0, SLOTS))]
        row, left = [], LENGTH
        for slot in slots:
            pads, length = draw(st.integers(0, 3)), draw(st.integers(1, 12))
            if pads + length > left:
                break
            left -= pads + length
            pair = draw(st.lists(st.integers(1, 199), min_size=length, max_size=length))
            row.append((pads, slot, np.array(pair, np.int32)))
        rows.append(row)
    return rows


@pytest.mark.parametrize("readout", READOUTS)
@given(rows=packed_rows())
def test_packed_and_alone_give_the_same_logits(readout, rows):
    graphdef, params = model(readout)
    packed = np.asarray(forward(graphdef, params, pack(rows)))
    assert np.isfinite(packed).all()
    pairs = [(r, slot, pair) for r, row in enumerate(rows) for _, slot, pair in row]
    alone_rows = [[(0, 0, pair)] for _, _, pair in pairs] + [[]] * (2 * SLOTS - len(pairs))
    alone = np.asarray(forward(graphdef, params, pack(alone_rows)))
    for i, (r, slot, _) in enumerate(pairs):
        # Invisible keys add exact zeros; what is left is the order of float32 sums over at most 32 terms, in two
        # layers, on logits of order 1.
        np.testing.assert_allclose(packed[r, slot], alone[i, 0], rtol=0, atol=2e-5)


def three_pairs() -> list[tuple[int, int, np.ndarray]]:
    """Pairs that share no token, in slots 2, 0 and 1."""
    return [(1, 2, np.arange(10, 18)), (0, 0, np.arange(30, 37)), (2, 1, np.arange(50, 60))]


@pytest.mark.parametrize("readout", ["pooled", "mean"])
def test_gradient_of_a_logit_reaches_the_tokens_of_its_own_pair_only(readout):
    graphdef, params = model(readout)
    row, table = three_pairs(), "bert/embeddings/token/embedding"
    jacobian = jax.jit(
        jax.jacrev(lambda embedding: ctr.forward(graphdef, params | {table: embedding}, pack([row]))[0, :, 0])
    )
    by_token = np.abs(np.asarray(jacobian(params[table]))).max(-1)  # [C, V]
    for _, slot, pair in row:
        others = np.setdiff1d(np.arange(200), pair)
        assert (by_token[slot, others] == 0).all()
        assert (by_token[slot, pair] > 0).all()


@pytest.mark.parametrize(("readout", "dtype"), [("pooled", "float32"), ("mean", "bfloat16")])
def test_empty_rows_and_pads_leave_gradients_finite_and_unchanged(readout, dtype):
    graphdef, params = model(readout, dtype)

    @jax.jit
    @jax.grad
    def gradients(params, batch: PackedBatch):
        return (batch.weights * ctr.forward(graphdef, params, batch) ** 2).sum()

    def with_tokens_in_pads(batch: PackedBatch) -> PackedBatch:
        return batch._replace(tokens=np.where(batch.segment == 0, 150, batch.tokens))

    batch = pack([three_pairs(), []])
    found, changed = gradients(params, batch), gradients(params, with_tokens_in_pads(batch))
    for path in found:
        assert np.isfinite(found[path]).all(), path
        np.testing.assert_array_equal(found[path], changed[path], err_msg=path)
    assert (np.asarray(found["bert/embeddings/token/embedding"])[[PAD, 150]] == 0).all()


def test_bfloat16_is_close_to_float32():
    # Weights as initialised: bfloat16 keeps 8 bits (0.4 %), and a handful of roundings a layer stay within a few
    # percent of the logits' size. Gradients by direction: they are what the optimizer follows.
    batch = pack([three_pairs(), []])
    results = {}
    for dtype in ("float32", "bfloat16"):
        model_config = config.Model(dtype=dtype)
        graphdef = models.build(model_config, BERT, 2)
        params = models.init(model_config, BERT, 2, jax.random.key(0))

        def loss(params, graphdef=graphdef):
            logits = ctr.forward(graphdef, params, batch)
            return (batch.weights * (logits - 1) ** 2).sum(), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        assert logits.dtype == jnp.float32
        assert all(gradient.dtype == jnp.float32 for gradient in gradients.values())
        flat = np.concatenate([np.ravel(gradients[path]) for path in sorted(gradients)])
        results[dtype] = np.asarray(logits)[batch.weights > 0], flat
    (exact, exact_gradient), (rounded, rounded_gradient) = results["float32"], results["bfloat16"]
    assert np.abs(exact - rounded).max() < 0.03 * np.abs(exact).max()
    cosine = exact_gradient @ rounded_gradient / np.linalg.norm(exact_gradient) / np.linalg.norm(rounded_gradient)
    assert cosine > 0.999


def test_parameters_are_named_float32_arrays_that_can_be_born_sharded():
    model_config, key = config.Model(), jax.random.key(3)
    init = functools.partial(models.init, model_config, BERT, 2)
    shapes, params = jax.eval_shape(init, key), init(key)
    assert params["bert/layers/1/attention/qkv/kernel"].shape == (16, 3, 16)
    assert params["head/dense/kernel"].shape == (16, 2)
    assert {path: x.shape for path, x in shapes.items()} == {path: x.shape for path, x in params.items()}
    assert all(array.dtype == jnp.float32 for array in params.values())
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = {path: P("fsdp" if shape.shape[0] % 2 == 0 else None) for path, shape in shapes.items()}
    shardings = {path: jax.sharding.NamedSharding(mesh, spec[path]) for path in shapes}
    sharded = jax.jit(init, out_shardings=shardings)(key)
    for path in params:
        # Compiled and op by op, the normal distribution's inverse error function may differ in the last bit.
        np.testing.assert_allclose(sharded[path], params[path], rtol=1e-5, atol=1e-7, err_msg=path)


def test_dropout_depends_on_the_key_alone():
    graphdef, params = model("pooled")
    batch = pack([three_pairs(), []])
    once, again, other = (
        np.asarray(forward(graphdef, params, batch, dropout_key=jax.random.key(seed))) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other)[0, :3].min() > 0


def test_a_token_outside_the_table_gives_nan():
    graphdef, params = model("first")
    batch = pack([[(0, 0, np.array([5, 200]))], three_pairs()])
    logits = np.asarray(forward(graphdef, params, batch))
    assert np.isnan(logits[0, 0]).all() and np.isfinite(logits[1]).all()
