"""The contrastive losses against float64 loops and torch, from towers through the step's own functions."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch, make_split
from hypothesis import given, settings
from hypothesis import strategies as st
from models import goals, make_spec

from srsjax import config
from srsjax.config import Task
from srsjax.data.batches.identity import ITEM, LOG_SHARE, with_identities
from srsjax.data.inputs import InputSpec
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.model import ctr
from srsjax.model.bert import BertConfig
from srsjax.model.heads import Pairs
from srsjax.objectives import losses

BERT = BertConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)


@st.composite
def slots(draw):
    """Vectors of contexts and candidates, and all that is known of the slots, [R, C, ...]."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (rows, width)
    group = np.sort(rng.integers(-1, 4, shape), axis=1).astype(np.int32)
    weights = np.where(group < 0, 0, rng.choice([0.0, 0.5, 1.0], shape)).astype(np.float32)
    labels = rng.choice([0.0, 1.0], shape).astype(np.float32)
    shares = np.array([0.5, 0.3, 0.2])
    item = rng.integers(0, 3, shape).astype(np.int32)
    vectors = rng.normal(size=(2, *shape, 4)).astype(np.float32)
    return vectors, labels, weights, group, item, np.log(shares[item]).astype(np.float32)


def loss_of(task: Task, queries, items, labels, weights, group, item, log_share) -> float:
    batch = make_batch(
        group=group,
        labels=labels[..., None],
        weights=weights[..., None],
        candidate_features={ITEM: item, LOG_SHARE: log_share},
    )
    lengths = [np.linalg.norm(x, axis=-1) for x in (queries, items)]
    pairs = Pairs(queries[:, :, None], items, (queries * items).sum(-1) / np.maximum(lengths[0] * lengths[1], 1e-12))
    made = goals(task)
    logits = jnp.asarray((queries * items).sum(-1)[..., None])
    return float(losses.total_loss(made, logits, batch, losses.normalisers(made, batch), pairs=pairs))


@given(slots(), st.booleans())
def test_in_batch_softmax_is_a_loop_over_the_other_candidates(known, corrected):
    (queries, items), labels, weights, group, item, log_share = known
    task = Task("take", kind="contrastive", sampling_correction=corrected)
    found = loss_of(task, queries, items, *known[1:])
    flat = [np.asarray(x, np.float64).reshape(-1, *x.shape[2:]) for x in (queries, items, labels, weights, group, item)]
    u, v, y, w, g, which = flat
    share = log_share.ravel().astype(np.float64) * corrected
    total = mass = 0.0
    for i in range(len(u)):
        if not (y[i] > 0 and w[i] > 0):
            continue
        among = [
            j
            for j in range(len(u))
            if j == i or (w[j] > 0 and which[j] != which[i] and not (g[j] == g[i] and y[j] > 0))
        ]
        scores = np.array([u[i] @ v[j] - share[j] for j in among])
        total += w[i] * y[i] * (np.log(np.exp(scores).sum()) - (u[i] @ v[i] - share[i]))
        mass += w[i] * y[i]
    assert found == pytest.approx(total / mass if mass else 0.0, rel=1e-4, abs=1e-5)


@given(slots())
def test_the_cosine_loss_is_torchs(known):
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
    (queries, items), labels, weights, *_ = known
    found = loss_of(Task("take", kind="contrastive", loss="cosine"), queries, items, *known[1:])
    loss = torch.nn.CosineEmbeddingLoss(reduction="none")
    flat = [torch.tensor(x.reshape(-1, 4), dtype=torch.float64) for x in (queries, items)]
    each = loss(*flat, torch.tensor(2 * labels.ravel() - 1)).numpy()
    wanted = (each * weights.ravel()).sum() / max(weights.sum(), 1e-30)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_popular_items_are_told_from_rare_ones_by_their_share_of_the_training_rows():
    tokens = Ragged.from_lengths(np.array([5, 6, 5, 7], np.int32), np.array([1, 1, 1, 1]))
    split = make_split(np.ones(5), np.array([[1.0], [1], [1], [1], [0]]), item=np.array([0, 0, 1, 2, 3]))
    told, items = with_identities(split, Items(tokens), catalogue=True)
    assert told is split
    np.testing.assert_array_equal(items.features[ITEM], [0, 1, 2, 3])
    # Four candidates are trained on; the one of weight 0 counts as one, so that no share is 0.
    np.testing.assert_allclose(np.exp(items.features[LOG_SHARE]), np.array([2, 1, 1, 1]) / 5, rtol=1e-6)
    told, items = with_identities(split, Items(tokens), catalogue=False)  # items 0 and 2 have the same text
    number = told.candidate_features[ITEM]
    assert number[0] == number[1] == number[3] and len({*number.tolist()}) == 3 and not items.features
    np.testing.assert_allclose(np.exp(told.candidate_features[LOG_SHARE])[[0, 2]], [3 / 5, 1 / 5], rtol=1e-6)


@pytest.mark.parametrize("product", ["cosine", "bilinear"])
def test_logits_of_pairs_are_those_of_the_model(product):
    """A context with its own candidate has the logit of `forward`, and the bilinear one is its formula."""
    features = (InputSpec("u", "context", "categorical", 7), InputSpec("i", "candidate", "categorical", 7))
    model = config.Model(interaction="towers", product=product)
    spec = make_spec(model, BERT, 2, features, reads_text=False)
    params = ctr.init(spec, jax.random.key(0))
    params = {path: x + 0.1 * jax.random.normal(jax.random.key(len(path)), x.shape) for path, x in params.items()}
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 7, (2, 2, 3)).astype(np.int32)
    batch = make_batch(
        group=np.zeros((2, 3), np.int32),
        context_of=np.tile(np.arange(3, dtype=np.int32), (2, 1)),
        context_features={"u": ids[0]},
        candidate_features={"i": ids[1]},
    )
    logits, pairs = ctr.forward_pairs(ctr.build(spec), params, batch)
    np.testing.assert_array_equal(logits, ctr.forward(ctr.build(spec), params, batch))
    own = jnp.einsum("rckd,rcd->rck", pairs.queries, pairs.items) + params["head/dense/bias"]
    np.testing.assert_allclose(own, logits, rtol=1e-5, atol=1e-5)
    assert (np.abs(pairs.cosines) <= 1 + 1e-6).all()
    if product == "bilinear":
        z, w = ctr.merge(ctr.build(spec), params).read(batch, None)[0]
        p = {path: np.asarray(x, np.float64) for path, x in params.items()}
        sides = [
            np.asarray(x, np.float64) @ p[f"head/{side}/kernel"] + p[f"head/{side}/bias"]
            for side, x in (("context", z), ("candidate", w))
        ]
        wanted = np.einsum("rcd,dk,rcd->rck", sides[0], p["head/dense/kernel"], sides[1]) + p["head/dense/bias"]
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100))
def test_the_loss_of_a_batch_over_devices_is_that_of_one(seed):
    """Negatives are taken from all rows, whichever device holds them."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(2, 8, 3, 4)).astype(np.float32)
    ones = np.ones((8, 3), np.float32)
    group = np.arange(24, dtype=np.int32).reshape(8, 3)
    known = (ones, ones, group, group, np.log(ones / 24))
    task = Task("take", kind="contrastive")
    whole = loss_of(task, *vectors, *known)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def loss(queries, items):
        batch = make_batch(
            group=group,
            labels=ones[..., None],
            weights=ones[..., None],
            candidate_features={ITEM: group, LOG_SHARE: known[-1]},
        )
        made, batch = goals(task), jax.tree.map(jnp.asarray, batch)
        pairs = Pairs(queries[:, :, None], items, ones)
        return losses.total_loss(made, ones[..., None], batch, losses.normalisers(made, batch), pairs=pairs)

    found = jax.jit(loss)(*(jax.device_put(x, rows) for x in vectors))
    assert float(found) == pytest.approx(whole, rel=1e-5)
    assert whole == pytest.approx(loss_of(task, *(x[::-1] for x in vectors), *known), rel=1e-5)


def test_a_contrastive_task_is_refused_without_towers():
    assert losses.compares_batch((Task(kind="contrastive"),))
    assert not losses.compares_batch((Task(), replace(Task(), name="b", kind="listwise")))
