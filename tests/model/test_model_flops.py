"""The formula against what XLA counts in the compiled forward pass, where nothing is padding."""

from dataclasses import replace

import jax
import models
import numpy as np
import pytest
from batches import make_batch, make_impressions, make_layout

from srsjax import config
from srsjax.data.batches.loader import eval_batches
from srsjax.data.inputs import InputSpec
from srsjax.model import ctr, flops
from srsjax.model.bert import BertConfig
from srsjax.model.interactions import INTERACTIONS as MEETING

BERT = BertConfig(
    vocab_size=200,
    hidden_size=128,
    num_layers=3,
    num_heads=2,
    intermediate_size=512,
    max_positions=64,
    has_pooler=False,
)


def full_batch(start: int | None, candidates: int):
    """A row of 64 tokens without padding: one context of 16 tokens and candidates of 48 / `candidates` each."""
    own = 48 // candidates
    split, items = make_impressions([[5] * 14], [[[7] * (own - 1)] * candidates])
    ((batch, _),) = eval_batches(split, items, make_layout(start), rows=1, tokens=64, candidates=candidates)
    assert (batch.segment > 0).all()
    return batch


@pytest.mark.parametrize("bert", [BERT, replace(BERT, num_heads=3, head_size=16)], ids=["whole", "heads left out"])
@pytest.mark.parametrize("readout", ["first", "mean"])
def test_a_full_row_of_one_pair_is_what_xla_counts(readout, bert):
    """All tokens see all tokens, so XLA's dense attention does nothing in vain."""
    model, batch = config.Model(readout=readout, dtype="float32"), full_batch(None, 1)
    params = models.init(model, bert, 1, jax.random.key(0))
    compiled = jax.jit(ctr.forward, static_argnums=0).lower(models.build(model, bert, 1), params, batch).compile()
    counted = compiled.cost_analysis()["flops"]
    # XLA counts additions, softmax, gelu and normalisation too: a few operations for each of the D to 4 D numbers that
    # a token has in a layer, against 24 D = 3072 in products for each of its D numbers.
    assert 0.9 < models.forward_flops(model, bert, batch) / counted < 1


@pytest.mark.parametrize(
    ("interaction", "seen"),
    [
        # context 16 and two candidates of 24; pairs of query and key in a layer, and those of the two read-outs
        ("shared", (16 * 16 + 48 * 40, 2 * 40)),
        ("towers", (16 * 16 + 48 * 24, 16 + 2 * 24)),
    ],
)
def test_queries_count_the_keys_they_see(interaction, seen):
    model, batch = config.Model(interaction=interaction, readout="first"), full_batch(20, 2)
    width, wide, reads = 128, 512, 3 if interaction == "towers" else 2
    layer = 64 * (8 * width**2 + 4 * width * wide) + 4 * width * seen[0]
    last = 4 * 64 * width**2 + reads * (4 * width**2 + 4 * width * wide) + 4 * width * seen[1]
    assert models.forward_flops(model, BERT, batch) == 2 * layer + last


@pytest.mark.parametrize("interaction", ["cross", "shared", "towers"])
def test_counts_of_keys_are_the_sums_of_the_mask(interaction):
    """Ids as no batch has them: in any order, candidates in other contexts' places, rows of padding alone."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        segment = rng.integers(0, 4, (5, 37)).astype(np.int32) * (rng.random((5, 1)) < 0.8)
        candidate = np.where(segment > 0, rng.integers(0, 6, (5, 37)), 0).astype(np.int32)
        (visibility,) = MEETING[interaction].layer_visibility(0, 1, segment, candidate)
        assert all(isinstance(ids, np.ndarray) for ids in visibility if ids is not None)  # nothing goes to a device
        np.testing.assert_array_equal(flops.keys_seen(visibility), np.asarray(visibility.mask()).sum(axis=2))


@pytest.mark.parametrize("combine", ["mlp", "dcn"])
def test_a_model_without_text_is_about_what_xla_counts(combine):
    """A list weighed by attention, ids and a number; XLA also counts what is no product, a few percent here."""
    features = (
        InputSpec("seen", "context", "categorical", 50, values=4, like="item", pooling="attention"),
        InputSpec("item", "candidate", "categorical", 50),
        InputSpec("price", "candidate", "numeric", 1),
    )
    settings = config.Model(combine=combine, combine_layers=(256, 128))
    spec = models.make_spec(settings, BERT, 1, features, reads_text=False)
    slots = np.tile(np.arange(16, dtype=np.int32), (2, 1))
    batch = make_batch(
        group=slots,
        context_of=slots,
        context_features={"seen": np.ones((2, 16, 4), np.int32)},
        candidate_features={"item": np.ones((2, 16), np.int32), "price": np.ones((2, 16), np.float32)},
    )
    params = ctr.init(spec, jax.random.key(0))
    compiled = jax.jit(ctr.forward, static_argnums=0).lower(ctr.build(spec), params, batch).compile()
    counted = flops.forward_flops(spec, batch)
    assert 0.9 < counted / compiled.cost_analysis()["flops"] <= 1.01
    half = batch._replace(group=np.where(slots < 8, slots, -1))
    assert flops.forward_flops(spec, half) == counted / 2
