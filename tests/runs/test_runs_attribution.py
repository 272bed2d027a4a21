"""Explanations of models with other features than text."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from batches import layout_for, make_split
from models import make_spec

from srsjax import config
from srsjax.config import Mesh, Schema, Task, TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.data.inputs import InputSpec
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.data.store.tokenizer import train_tokenizer
from srsjax.model.bert import BertConfig
from srsjax.runs.attribution import Explainer
from srsjax.runs.session import open_session

TEXT = train_tokenizer(["red blue green wool coat shoe"] * 3, 100, lowercase=True)
BERT = BertConfig(TEXT.vocab_size, 16, 2, 2, 32, 40)
FEATURES = (
    InputSpec("device", "context", "categorical", 5),
    InputSpec("clicked", "context", "categorical", 7, values=3, like="brand", pooling="attention"),
    InputSpec("age", "context", "numeric", 1, mean=40.0, deviation=12.0, may_be_missing=True),
    InputSpec("brand", "candidate", "categorical", 7),
    InputSpec("image", "candidate", "vector", 3),
)


def store() -> tuple[Split, Items]:
    rng, counts = np.random.default_rng(0), [3, 1, 4]
    items = Items(
        Ragged.from_rows([rng.integers(5, TEXT.vocab_size, rng.integers(1, 6)) for _ in range(6)], np.int32),
        {"image": rng.normal(size=(6, 3)).astype(np.float32)},
    )
    split = make_split(
        np.zeros(sum(counts)),
        counts=counts,
        context=Ragged.from_rows([rng.integers(5, TEXT.vocab_size, 4) for _ in counts], np.int32),
        item=rng.integers(0, 6, sum(counts)),
        context_features={
            "device": rng.integers(1, 5, 3).astype(np.int32),
            "clicked": rng.integers(1, 7, (3, 3)).astype(np.int32),
            "age": np.array([20, np.nan, 70], np.float32),
        },
        candidate_features={"brand": rng.integers(1, 7, sum(counts)).astype(np.int32)},
    )
    return split, items


def make(interaction: str, combine: str, outputs: int = 1):
    model = config.Model(interaction=interaction, combine=combine, combine_layers=(12,), head_dropout=0.0)
    schema = Schema(tasks=tuple(Task(f"task-{t}") for t in range(outputs)))
    spec = make_spec(model, BERT, outputs, FEATURES if combine != "text" else ())
    session = open_session(TrainConfig(schema=schema, model=model, mesh=Mesh(1)), spec, jax.devices()[:1])
    large = ("features", "head", *["combine"] * (combine == "concat"))
    params = {path: 8 * x if path.startswith(large) else x for path, x in session.init(jax.random.key(0)).items()}
    shape = BatchShape(layout_for(interaction, 12), tokens=64, candidates=6, eval_rows=2, outputs=outputs)
    return session, params, Explainer(session, params, shape, TEXT)


@pytest.mark.parametrize(
    "interaction, combine",
    [("cross", "concat"), ("shared", "attention"), ("split", "dcn"), ("towers", "concat"), ("cross", "deepfm")],
)
def test_values_of_tokens_and_features_sum_to_the_difference(interaction, combine):
    split, items = store()
    _, _, explainer = make(interaction, combine)
    candidates = np.array([6, 0, 3, 2])
    found = explainer.explain(split, items, candidates, np.zeros(4, int))
    for number, explanation in zip(candidates, found, strict=True):
        difference = explanation.logit - explanation.baseline
        assert abs(difference) > 1e-3 and abs(explanation.error) <= max(0.01 * abs(difference), 5e-4)
        assert list(explanation.features) == [each.name for each in FEATURES]
        moved = {name for name, value in explanation.features.items() if value}
        assert moved == {each.name for each in FEATURES} - ({"age"} if number == 3 else set())
        impression = np.searchsorted(split.candidates, number, side="right") - 1
        texts = {"context": split.context[impression], "candidate": items.tokens[split.item[number]]}
        for side, ids in texts.items():
            tokens = [token.token for token in explanation.tokens if token.side == side]
            assert tokens == [TEXT.tokenizer.id_to_token(int(i)) for i in ids]


def test_features_that_the_model_does_not_read_explain_nothing():
    """`combine="text"` has them in its batches, to compare with."""
    split, items = store()
    (found,) = make("cross", "text")[2].explain(split, items, np.array([6]), np.zeros(1, int))
    assert found.features == {} and found.text
    assert abs(found.error) <= max(0.01 * abs(found.logit - found.baseline), 5e-4)


def test_a_linear_model_is_explained_by_its_weights():
    """`wide_deep` without hidden layers is linear: a value is what the logit loses where the feature is unknown."""
    features = (InputSpec("a", "context", "categorical", 5), InputSpec("b", "candidate", "numeric", 1, deviation=2.0))
    model = config.Model(combine="wide_deep", combine_layers=(), head_dropout=0.0)
    spec = make_spec(model, BERT, 1, features, reads_text=False)
    session = open_session(TrainConfig(model=model, mesh=Mesh(1)), spec, jax.devices()[:1])
    params = {path: 5 * x for path, x in session.init(jax.random.key(3)).items()}
    numbers = {"a": np.array([1, 4], np.int32), "b": np.array([-3.0, 5.0], np.float32)}
    split = make_split(
        np.zeros(2), context_features={"a": numbers["a"]}, candidate_features={"b": numbers["b"]}, item=np.zeros(2, int)
    )
    items = Items(Ragged.from_rows([[]], np.int32))
    layout = layout_for("cross", 0)
    found = Explainer(session, params, BatchShape(layout, 32, 4, 1), TEXT).explain(
        split, items, np.arange(2), np.zeros(2, int)
    )
    table = np.asarray(params["features/context/input_a/table/embedding"], np.float64)
    width = table.shape[1]
    kernel = np.asarray(params["head/dense/kernel"], np.float64)[:, 0]
    # [sum of vectors, all vectors side by side]: each vector meets the head's kernel twice.
    own = {"a": kernel[:width] + kernel[width : 2 * width], "b": kernel[:width] + kernel[2 * width :]}
    slope = np.asarray(params["features/candidate/input_b/dense/kernel"], np.float64)[0]
    for i, explanation in enumerate(found):
        assert explanation.features["a"] == pytest.approx((table[numbers["a"][i]] - table[0]) @ own["a"], rel=1e-4)
        assert explanation.features["b"] == pytest.approx(numbers["b"][i] / 2 * slope @ own["b"], rel=1e-4)
        assert not explanation.tokens
