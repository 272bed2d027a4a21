"""A list that says more of another one's elements: its embeddings are added to theirs before they are pooled."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import make_batch
from models import make_spec

from srsjax import config
from srsjax.data.inputs import InputSpec
from srsjax.model import ctr
from srsjax.model.bert import BertConfig
from srsjax.runs.tables import table_readers

BERT = BertConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)
IDS = np.array([[[3, 5, 0], [1, 2, 6], [0, 0, 0]]], np.int32)
WHEN = np.array([[[4, 1, 0], [2, 2, 3], [0, 0, 0]]], np.int32)
HOW = np.array([[[1, 2, 0], [2, 1, 1], [0, 0, 0]]], np.int32)
ITEM, CONTEXT = np.array([[3, 1, 6, 2]], np.int32), np.array([[0, 0, 1, 2]], np.int32)


def features(pooling: str, width: int = 0) -> tuple[InputSpec, ...]:
    return (
        InputSpec("bought", "context", "categorical", 7, values=3, width=width, like="item", pooling=pooling),
        InputSpec("when", "context", "categorical", 5, values=3, width=width, along="bought"),
        InputSpec("how", "context", "categorical", 3, values=3, width=width, along="bought"),
        InputSpec("item", "candidate", "categorical", 7, width=width),
    )


def made(own: tuple[InputSpec, ...], model: config.Model):
    spec = make_spec(model, BERT, 1, own, reads_text=False)
    params = ctr.init(spec, jax.random.key(0))
    rng = np.random.default_rng(0)
    return spec, {path: rng.normal(size=x.shape).astype(np.float32) / 2 for path, x in params.items()}


def batch(**changes):
    arrays = {"bought": IDS, "when": WHEN, "how": HOW} | changes
    return make_batch(
        group=np.zeros((1, 4), np.int32),
        context_of=CONTEXT,
        context_features=arrays,
        candidate_features={"item": ITEM},
    )


def pooled(p, pooling: str, width: int) -> np.ndarray:
    """[1, 4, D] float64: what is read of the list, by its formula."""
    tables = [p[f"features/{of}/table/embedding"] for of in ("candidate/input_item", "context/input_when")]
    tables.append(p["features/context/input_how/table/embedding"])
    e = sum(table[ids] for table, ids in zip(tables, (IDS, WHEN, HOW), strict=True))[0][CONTEXT[0]]  # [4, 3, w]
    known, q = (IDS[0][CONTEXT[0]] > 0)[..., None], tables[0][ITEM[0]]
    if pooling == "mean":
        mean = (e * known).sum(1) / np.maximum(known.sum(1), 1)
        found = np.where(known.any(1), mean, tables[0][0])
    else:
        q = np.broadcast_to(q[:, None], e.shape)
        dense = {
            name: [p[f"features/context/input_bought/attention/{name}/{x}"] for x in ("kernel", "bias")]
            for name in ("up", "down")
        }
        hidden = 1 / (1 + np.exp(-(np.concatenate([e, q, e - q, e * q], -1) @ dense["up"][0] + dense["up"][1])))
        found = ((hidden @ dense["down"][0] + dense["down"][1]) * known * e).sum(1)
    if width:
        found = found @ p["features/context/input_bought/dense/kernel"] + p["features/context/input_bought/dense/bias"]
    return found[None]


@pytest.mark.parametrize("width", [0, 4])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_embeddings_are_added_before_they_are_pooled(pooling, width):
    spec, params = made(features(pooling, width), config.Model(combine="mlp", combine_layers=(6,)))
    p = {path: np.asarray(x, np.float64) for path, x in params.items()}
    assert ctr.feature_names(spec) == {"candidate": ["bought", "item"]}
    vectors = ctr.merge(ctr.build(spec), params).feature_vectors(batch())["candidate"]
    assert len(vectors) == 2
    np.testing.assert_allclose(vectors[0], pooled(p, pooling, width), rtol=1e-4, atol=1e-5)
    assert np.isfinite(ctr.forward(ctr.build(spec), params, batch())).all()


@pytest.mark.parametrize("pooling", ["mean", "attention", "transformer"])
def test_what_is_said_of_padding_counts_for_nothing_and_of_items_it_does(pooling):
    own = features(pooling)
    own = own if pooling != "transformer" else (replace(own[0], like=""), *own[1:])
    spec, params = made(own, config.Model(combine="mlp", combine_layers=(6,)))
    of = [np.asarray(ctr.forward(ctr.build(spec), params, each))[0, :, 0] for each in (batch(), batch(when=WHEN * 0))]
    assert np.abs(of[0] - of[1])[:3].min() > 1e-4
    padding = WHEN.copy()
    padding[0, 0, 2] = 3  # where `bought` has none
    np.testing.assert_array_equal(ctr.forward(ctr.build(spec), params, batch(when=padding))[0, :2, 0], of[0][:2])
    slope = jax.grad(lambda p: ctr.forward(ctr.build(spec), p, batch())[..., 0].sum())(params)
    touched = np.abs(np.asarray(slope["features/context/input_when/table/embedding"])).sum(-1)
    assert (touched[1:] > 0).all()


def test_a_table_of_its_own_is_updated_where_it_is_touched():
    spec, _ = made(features("attention"), config.Model(combine="mlp", combine_layers=(6,)))
    assert table_readers(spec) == {
        "features/candidate/input_item/table/embedding": (("context", "bought"), ("candidate", "item")),
        "features/context/input_when/table/embedding": (("context", "when"),),
        "features/context/input_how/table/embedding": (("context", "how"),),
    }
