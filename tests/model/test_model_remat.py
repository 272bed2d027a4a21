"""Rematerialisation changes what is kept for the gradient, not what is computed."""

import jax
import models
import numpy as np
import pytest
from batches import make_batch

from srsjax import config
from srsjax.data.batches.batch import PackedBatch
from srsjax.model import ctr
from srsjax.model.attention_choice import packed_ids
from srsjax.model.bert import BertConfig

BERT = BertConfig(vocab_size=100, hidden_size=64, num_layers=3, num_heads=4, intermediate_size=256, max_positions=64)


def batch(rows: int = 4, tokens: int = 64) -> PackedBatch:
    segment, candidate = packed_ids(rows, tokens)
    random = np.random.default_rng(0)
    ids = random.integers(5, 100, segment.shape).astype(np.int32)
    return make_batch(ids, segment=segment, candidate=candidate)


def gradient(remat: str):
    """The compiled gradient of a model with dropout, and its parameters."""
    model = config.Model(remat=remat, dtype="float32")
    graphdef = models.build(model, BERT, 1)
    params = models.init(model, BERT, 1, jax.random.key(0))

    def loss(params):
        logits = ctr.forward(graphdef, params, batch(), dropout_key=jax.random.key(1))
        return (logits**2).sum()

    return jax.jit(jax.value_and_grad(loss)).lower(params).compile(), params


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_loss_and_gradients_are_those_of_a_model_that_keeps_everything(remat):
    compiled, params = gradient("none")
    loss, gradients = compiled(params)
    again, found = gradient(remat)[0](params)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    scale = max(float(np.abs(value).max()) for value in gradients.values())
    for path, expected in gradients.items():  # the compiler may fuse, and so round, the second forward pass otherwise
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-6 * scale, err_msg=path)


def test_each_policy_keeps_less_and_computes_more():
    compiled = {remat: gradient(remat)[0] for remat in ("none", "dots", "full")}
    memory = {remat: program.memory_analysis().temp_size_in_bytes for remat, program in compiled.items()}
    products = {remat: program.as_text().count(" dot(") for remat, program in compiled.items()}
    assert memory["full"] < memory["dots"] < memory["none"]
    assert products["full"] > products["dots"] > products["none"]
