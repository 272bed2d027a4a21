"""Which heads a pruned encoder keeps, and what it computes without the others."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from batches import layout_for
from models import make_spec
from small_problem import SMALL, VOCAB, clicks

from srsjax.config import Batch, Mesh, Model, Schema, Task, TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.errors import InputError
from srsjax.model.bert import BertConfig
from srsjax.model.hf_export import with_empty_heads
from srsjax.model.spec import ModelSpec, encoder_config
from srsjax.runs.evaluation import predict_split
from srsjax.runs.pruning import head_importance, kept_heads, spec_without_heads, without_heads
from srsjax.runs.session import open_session
from srsjax.runs.steps import loss_batches

OUT = "bert/layers/{}/attention/out/kernel"


def make(spec: ModelSpec | None = None, model: Model = SMALL, task: Task = Task("click")) -> SimpleNamespace:
    """A model in float32 with weights large enough for heads to differ, and labelled pairs that are one batch."""
    spec = spec or make_spec(model, encoder_config(model, VOCAB))
    config = TrainConfig(schema=Schema(tasks=(task,)), model=model, mesh=Mesh(1))
    session = open_session(config, spec, jax.devices()[:1], training=False)
    params = {path: np.asarray(value) for path, value in session.init(jax.random.key(0)).items()}
    params = {path: 5 * value if path.startswith(("bert/layers", "head")) else value for path, value in params.items()}
    split, items = clicks(30)
    shape = BatchShape(layout_for(model.interaction, 10), tokens=64, candidates=8, eval_rows=64)
    return SimpleNamespace(
        config=config, session=session, spec=spec, params=params, split=split, items=items, shape=shape
    )


def logits_of(made: SimpleNamespace, params: dict, session=None) -> np.ndarray:
    session = session or made.session
    return predict_split(session.predict_step, params, made.split, made.items, made.shape, session.mesh)[:, 0]


def binary(x, label, weight, impression) -> float:
    """Mean cross-entropy."""
    return weight @ (np.logaddexp(0, x) - label * x) / weight.sum()


def listwise(x, label, weight, impression) -> float:
    """Mean over impressions with a positive of the cross-entropy of their softmax."""
    losses = []
    for one in np.unique(impression):
        own, target = x[impression == one], (label * weight)[impression == one]
        if target.any():
            losses.append(np.log(np.exp(own).sum()) - target @ own / target.sum())
    return sum(losses) / max(len(losses), 1)


def cosine(x, label, weight, impression) -> float:
    """Mean of 1 - cos of positives and max(0, cos) of others; `make` has logits of 5 x 10 cosines."""
    return weight @ (label * (1 - x / 50) + (1 - label) * np.maximum(0, x / 50)) / weight.sum()


def batches_of(made: SimpleNamespace, rows: int) -> list[np.ndarray]:
    """The candidates of each batch of so many rows."""
    batch = Batch(rows=rows, tokens=made.shape.tokens, candidates=made.shape.candidates)
    batches = loss_batches(replace(made.config, batch=batch), made.split, made.items, made.shape.layout)
    return [numbers[numbers >= 0] for _, numbers in batches]


def scaled(params: dict, layer: int, head: int, width: int, factor: float) -> dict:
    """The parameters with the output of one head times a factor."""
    kernel = params[OUT.format(layer)].copy()
    kernel[head * width : (head + 1) * width] *= factor
    return params | {OUT.format(layer): kernel}


@pytest.mark.parametrize(
    ("task", "interaction", "loss"),
    [
        (Task("click"), "cross", binary),
        (Task("click", kind="listwise"), "cross", listwise),
        (Task("click", kind="contrastive", loss="cosine"), "towers", cosine),
    ],
    ids=lambda value: getattr(value, "kind", getattr(value, "__name__", value)),
)
def test_importance_is_the_mean_slope_of_the_loss_by_a_mask(task, interaction, loss):
    """Against central differences of the loss of each row or, where candidates of a batch are compared, each batch; of
    half-width 0.02, beside float32 logits, good to 1e-6 of a loss of about 1."""
    made, width, step = make(model=replace(SMALL, interaction=interaction), task=task), 16, 0.02
    found = head_importance(made.session, made.config, made.params, made.split, made.items, made.shape)
    batches, expected = batches_of(made, 64 if loss is cosine else 1), np.zeros((SMALL.num_layers, SMALL.num_heads))
    assert len(batches) > 3 or loss is cosine
    assert sorted(np.concatenate(batches)) == [*range(len(made.split.item))]
    known = made.split.labels[:, 0], made.split.weights[:, 0].astype(np.float64)
    impression = np.repeat(np.arange(len(made.split)), np.diff(made.split.candidates))
    for layer, head in np.ndindex(*expected.shape):
        up, down = (
            logits_of(made, scaled(made.params, layer, head, width, 1 + way * step)).astype(np.float64)
            for way in (1, -1)
        )
        changes = [
            loss(*(values[own] for values in (up, *known, impression)))
            - loss(*(values[own] for values in (down, *known, impression)))
            for own in batches
        ]
        expected[layer, head] = np.abs(changes).mean() / (2 * step)
    assert expected.max() > 2 * expected.min() > 0
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=1e-4)


def test_the_most_important_heads_of_each_layer_are_kept():
    importance = np.array([[3.0, 1.0, 2.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    assert kept_heads(importance, 2) == [[0, 3], [0, 3]]
    for keep in (0, 4, 5):
        with pytest.raises(InputError, match=f"--heads: found {keep}, expected 1 to 3"):
            kept_heads(importance, keep)


@pytest.mark.parametrize("interaction", ["cross", "shared", "towers"])
def test_what_is_left_computes_what_the_whole_does_with_the_others_silent(interaction):
    """So does an encoder with empty heads in their place, which is what transformers can load."""
    model = Model(**{**vars(SMALL), "interaction": interaction})
    made, width = make(model=model), SMALL.hidden_size // SMALL.num_heads
    kept = [[1, 3], [0, 2]]
    silent = made.params
    for layer, own in enumerate(kept):
        for head in {*range(SMALL.num_heads)} - {*own}:
            silent = scaled(silent, layer, head, width, 0.0)
    expected = logits_of(made, silent)
    assert np.abs(expected - logits_of(made, made.params)).max() > 1e-3
    params, spec = without_heads(made.params, kept, width), spec_without_heads(made.spec, 2)
    assert params[OUT.format(0)].shape == (2 * width, SMALL.hidden_size)
    small = open_session(made.config, spec, jax.devices()[:1], training=False)
    assert {path: value.shape for path, value in params.items()} == {path: s.shape for path, s in small.shapes.items()}
    # The same sums in another order.
    np.testing.assert_allclose(logits_of(made, params, small), expected, atol=2e-5)
    whole, bert = with_empty_heads(params, spec.encoder)
    assert bert == made.spec.encoder
    np.testing.assert_allclose(logits_of(made, whole), expected, atol=2e-5)
    again = ModelSpec.from_json(spec.to_json(), "model.json")
    assert again == spec and again.encoder.attention_width == 2 * width
    before = made.spec.to_json()  # as it was when heads were always those of the whole
    del before["encoder"]["head_size"]
    assert ModelSpec.from_json(before, "model.json") == made.spec


def test_heads_that_do_not_divide_the_width_are_not_exported():
    bert = BertConfig(VOCAB, hidden_size=64, num_heads=2, head_size=24)
    with pytest.raises(InputError, match="heads of width 24: transformers has none in an encoder of width 64"):
        with_empty_heads({}, bert)
