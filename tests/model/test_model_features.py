"""Features besides text: their vectors and the combination against numpy, and logits that do not depend on packing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_layout, make_split
from models import make_spec
from scipy.special import erf

from srsjax import config
from srsjax.data.batches.loader import eval_batches
from srsjax.data.inputs import InputSpec
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.model import ctr
from srsjax.model.bert import BertConfig

BERT = BertConfig(vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=32)
FEATURES = (
    InputSpec("device", "context", "categorical", 5),
    InputSpec("age", "context", "numeric", 1, mean=40.0, deviation=12.0),
    InputSpec("brand", "candidate", "categorical", 7),
    InputSpec("image", "candidate", "vector", 3),
)


@pytest.fixture
def store() -> tuple[Split, Items]:
    rng = np.random.default_rng(0)
    counts = [3, 1, 4]
    items = Items(
        Ragged.from_rows([rng.integers(3, 50, rng.integers(1, 6)) for _ in range(6)], np.int32),
        {"image": rng.normal(size=(6, 3)).astype(np.float32)},
    )
    split = make_split(
        np.zeros(sum(counts)),
        counts=counts,
        context=Ragged.from_rows([rng.integers(3, 50, 4) for _ in counts], np.int32),
        item=rng.integers(0, 6, sum(counts)),
        context_features={
            "device": rng.integers(0, 5, 3).astype(np.int32),
            "age": rng.uniform(18, 80, 3).astype(np.float32),
        },
        candidate_features={"brand": rng.integers(0, 7, sum(counts)).astype(np.int32)},
    )
    return split, items


def model(interaction: str, combine: str = "concat"):
    settings = config.Model(interaction=interaction, combine=combine, combine_layers=(12,), head_dropout=0.0)
    spec = make_spec(settings, BERT, 1, FEATURES)
    params = ctr.init(spec, jax.random.key(0))
    # Large enough that every feature is seen in the logits; attention of large weights would take one vector alone.
    large = ("features", "head") if combine == "attention" else ("features", "combine", "head")
    params = {path: 20 * x if path.startswith(large) else x for path, x in params.items()}
    return spec, params


def logits(spec, params, split: Split, items: Items, candidates: int) -> np.ndarray:
    """[M], through packed batches of at most so many candidates a row."""
    start = 12 if spec.interaction.shares_context else None
    layout = make_layout(start)
    out = np.full(len(split.item), np.nan)
    for batch, numbers in eval_batches(split, items, layout, rows=2, tokens=64, candidates=candidates):
        found = np.asarray(ctr.forward(ctr.build(spec), params, batch))[..., 0]
        out[numbers[numbers >= 0]] = found[numbers >= 0]
    return out


@pytest.mark.parametrize(
    "interaction, combine",
    [(name, "concat") for name in ("cross", "shared", "split", "towers")]
    + [("cross", "mlp"), ("shared", "dcn"), ("shared", "attention"), ("towers", "attention")],
)
def test_packed_and_one_by_one_give_the_same_logits_and_every_feature_counts(store, interaction, combine):
    split, items = store
    spec, params = model(interaction, combine)
    packed = logits(spec, params, split, items, candidates=6)
    # float32 sums in another order, on logits of order 1 (of order 10 in towers, 1,000 in dcn)
    np.testing.assert_allclose(logits(spec, params, split, items, candidates=1), packed, rtol=1e-6, atol=1e-4)
    for side, names in (("context", ("device", "age")), ("candidate", ("brand",))):
        for name in names:
            changed = {**getattr(split, f"{side}_features")}
            changed[name] = (changed[name] + 1) % 5 if changed[name].dtype == np.int32 else changed[name] + 10
            other = logits(spec, params, Split(**{**vars(split), f"{side}_features": changed}), items, candidates=6)
            assert (np.abs(other - packed) > 1e-3).all(), name


def test_the_combination_is_the_formula(store):
    """float64 numpy: an embedding, a standardised number, a linear map, then x + W2 gelu(W1 [x, f] + b1) + b2."""
    split, items = store
    spec, params = model("cross")
    layout = make_layout()
    ((batch, numbers),) = eval_batches(split, items, layout, rows=1, tokens=128, candidates=8)
    merged = ctr.merge(ctr.build(spec), params)
    (text,) = merged.encode(batch, spec.interaction.read(batch))
    (found,) = merged.joined(batch, [text])
    p = {path: np.asarray(array, np.float64) for path, array in params.items()}
    number = numbers[0]
    of = np.searchsorted(split.candidates, number, side="right") - 1

    def dense(path: str, x: np.ndarray) -> np.ndarray:
        return x @ p[f"{path}/kernel"] + p[f"{path}/bias"]

    age = (split.context_features["age"][of, None].astype(np.float64) - 40) / 12
    vectors = [
        np.asarray(text[0], np.float64),
        p["features/context/input_device/table/embedding"][split.context_features["device"][of]],
        dense("features/context/input_age/dense", age),
        p["features/candidate/input_brand/table/embedding"][split.candidate_features["brand"][number]],
        dense("features/candidate/input_image/dense", items.features["image"][split.item[number]].astype(np.float64)),
    ]
    inner = dense("combine/candidate/up", np.concatenate(vectors, axis=-1))
    expected = vectors[0] + dense("combine/candidate/down", inner * (1 + erf(inner / np.sqrt(2))) / 2)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)  # float32 sums of 80 products


def test_sides_can_be_had_alone():
    """In towers the vectors of rows that hold one side only are those of the whole batch."""
    rng = np.random.default_rng(1)
    items = Items(Ragged.from_rows([rng.integers(3, 50, rng.integers(1, 6)) for _ in range(9)], np.int32))
    spec = make_spec(config.Model(interaction="towers"), BERT)
    params, graphdef = ctr.init(spec, jax.random.key(0)), ctr.build(spec)
    context = Ragged.from_rows([rng.integers(3, 50, 4), rng.integers(3, 50, 2)], np.int32)
    split = make_split(np.zeros(9), counts=[4, 5], context=context)
    from srsjax.data.batches.contexts import items_alone

    layout = make_layout(12)
    ((batch, numbers),) = eval_batches(split, items, layout, rows=1, tokens=128, candidates=9)
    whole = np.asarray(ctr.vectors(graphdef, params, batch, "candidate"))[0]
    for alone, own in eval_batches(items_alone(items), items, layout.alone(), rows=1, tokens=32, candidates=3):
        found = np.asarray(ctr.vectors(graphdef, params, alone, "candidate"))
        for row, slot in zip(*np.nonzero(own >= 0), strict=True):
            expected = whole[np.flatnonzero(numbers[0] == own[row, slot])[0]]
            np.testing.assert_allclose(found[row, slot], expected, atol=1e-5)
    contexts = ctr.vectors(graphdef, params, batch, "context")
    assert contexts.shape[1] == batch.context_readout.shape[1]
    merged = ctr.merge(graphdef, params)
    per_candidate, _ = merged.encode(batch, spec.interaction.read(batch))
    gathered = jnp.take_along_axis(contexts, batch.context_of[:, :, None], axis=1)
    used = batch.group >= 0
    np.testing.assert_allclose(np.asarray(gathered)[used], np.asarray(per_candidate)[used], atol=1e-6)


def test_a_side_that_sees_the_other_has_no_vector_alone():
    for interaction, side in (("cross", "context"), ("shared", "candidate"), ("split", "candidate")):
        spec = make_spec(config.Model(interaction=interaction), BERT)
        with pytest.raises(ValueError, match="no vector of its own"):
            ctr.vectors(ctr.build(spec), ctr.init(spec, jax.random.key(0)), None, side)
