"""What each interaction promises: a candidate's logits do not depend on how it is packed, nor on other candidates; and
a token reaches exactly what may see it."""

import functools

import jax
import models
import numpy as np
import pytest
from batches import layout_for, make_impressions, make_layout
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from srsjax import config
from srsjax.data.batches.contexts import join_equal_contexts
from srsjax.data.batches.loader import eval_batches
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.model.bert import Bert, BertConfig
from srsjax.model.interactions import INTERACTIONS as MEETING

INTERACTIONS = ["cross", "shared", "split", "towers"]
BERT = BertConfig(vocab_size=200, hidden_size=16, num_layers=3, num_heads=2, intermediate_size=32, max_positions=32)
START, TOKENS, SLOTS = 12, 48, 6


@functools.cache
def model(interaction: str, readout: str = "pooled", split_layers: int = 1):
    """(graphdef, params) with weights large enough that attention is far from uniform."""
    model_config = config.Model(interaction=interaction, readout=readout, split_layers=split_layers, dtype="float32")
    bert = BertConfig(**{**vars(BERT), "has_pooler": readout == "pooled"})
    params = models.init(model_config, bert, 1, jax.random.key(0))
    params = {path: 10 * array if path.endswith(("kernel", "embedding")) else array for path, array in params.items()}
    return models.build(model_config, bert, 1), params


forward = jax.jit(ctr.forward, static_argnums=0)


def logits(interaction: str, readout: str, split: Split, items: Items, slots: int = SLOTS, rows: int = 2) -> np.ndarray:
    """[M] of every candidate, through packed batches."""
    graphdef, params = model(interaction, readout)
    layout = layout_for(interaction, START)
    out = np.full(len(split.item), np.nan)
    for batch, numbers in eval_batches(split, items, layout, rows=rows, tokens=TOKENS, candidates=slots):
        found = np.asarray(forward(graphdef, params, batch))[..., 0]
        out[numbers[numbers >= 0]] = found[numbers >= 0]
    return out


texts = st.lists(st.integers(3, 199), min_size=0, max_size=9)
impressions = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=7)), min_size=1, max_size=4)


@pytest.mark.parametrize(("interaction", "readout"), [(i, "pooled") for i in INTERACTIONS] + [("towers", "mean")])
@settings(max_examples=6)
@given(impressions=impressions)
def test_alone_together_and_one_by_one_give_the_same_logits(interaction, readout, impressions):
    contexts, candidates = zip(*impressions, strict=True)
    split, items = make_impressions(contexts, candidates)
    packed = logits(interaction, readout, split, items)
    assert np.isfinite(packed).all()
    repeated = [context for context, own in impressions for _ in own]
    one_by_one, _ = make_impressions(repeated, [[text] for _, own in impressions for text in own])
    alone = np.concatenate([logits(interaction, readout, *make_impressions([c], [own])) for c, own in impressions])
    # Invisible keys add exact zeros; what is left is the order of float32 sums, in three layers, on logits of order 1
    # (of order 10 in towers).
    tolerance = 1e-3 if interaction == "towers" else 1e-4
    np.testing.assert_allclose(logits(interaction, readout, one_by_one, items), packed, rtol=0, atol=tolerance)
    np.testing.assert_allclose(alone, packed, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        logits(interaction, readout, join_equal_contexts(one_by_one), items), packed, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("interaction", INTERACTIONS)
@pytest.mark.parametrize("readout", ["pooled", "mean"])
def test_a_token_reaches_its_own_impression_and_candidate_only(interaction, readout):
    """The gradient of each logit by the token embeddings; no two texts share a token."""
    graphdef, params = model(interaction, readout)
    contexts, candidates = [[10, 11], [20]], [[[30, 31], [40]], [[50, 51, 52]]]
    split, items = make_impressions(contexts, candidates)
    layout = layout_for(interaction, START)
    ((batch, numbers),) = eval_batches(split, items, layout, rows=1, tokens=TOKENS, candidates=SLOTS)
    table = "bert/embeddings/token/embedding"
    jacobian = jax.jit(jax.jacrev(lambda x: ctr.forward(graphdef, params | {table: x}, batch)[0, :, 0]))(params[table])
    reached = np.abs(np.asarray(jacobian)).max(-1) > 0  # [C, V]
    contexts_of = [contexts[0], contexts[0], contexts[1]]
    own = [text for texts in candidates for text in texts]
    for slot, number in enumerate(numbers[0]):
        if number >= 0:
            expected = set(contexts_of[number]) | set(own[number])
            assert set(np.flatnonzero(reached[slot, 3:]) + 3) == expected


def hidden_reach(interaction: str, split_layers: int) -> np.ndarray:
    """[L, V]: whether the last hidden state of each token of a row depends on each token id of the vocabulary. The row
    holds [CLS] 10 11 [SEP], then 30 31 [SEP] and 40 [SEP], in towers with [CLS] before each."""
    split, items = make_impressions([[10, 11]], [[[30, 31], [40]]])
    layout = layout_for(interaction, START)
    ((batch, _),) = eval_batches(split, items, layout, rows=1, tokens=TOKENS, candidates=SLOTS)
    visibility = MEETING[interaction].layer_visibility(split_layers, BERT.num_layers, batch.segment, batch.candidate)
    graphdef, state = nnx.split(Bert(BERT, np.dtype("float32"), nnx.Rngs(0)))
    params, path = dict(nnx.to_flat_state(state)), ("embeddings", "token", "embedding")

    def encode(embedding):
        bert = nnx.merge(graphdef, nnx.from_flat_state((params | {path: params[path].replace(embedding)}).items()))
        return bert(batch.tokens, batch.positions, batch.token_types, visibility)[0]

    table = params[path].get_value()
    # A random direction of the hidden states, so that nothing cancels out by layer normalisation.
    towards = jax.random.normal(jax.random.key(1), (BERT.hidden_size,))
    jacobian = jax.jacrev(lambda embedding: encode(embedding) @ towards)(table)
    return np.abs(np.asarray(jacobian)).max(-1) > 0


@pytest.mark.parametrize(("interaction", "split_layers"), [("shared", 0), ("split", 2), ("split", 3), ("towers", 0)])
def test_contexts_see_themselves_and_candidates_the_context_where_they_may(interaction, split_layers):
    reached = hidden_reach(interaction, split_layers)
    opened = interaction == "towers"  # a token before each candidate's text
    slots = (2, 4 + opened, 7 + 2 * opened)  # of a token of the context, of the first candidate, of the second
    seen = [{token for token in (10, 11, 30, 31, 40) if reached[slot, token]} for slot in slots]
    meet = interaction == "shared" or (interaction == "split" and split_layers < BERT.num_layers)
    context = {10, 11} if meet else set()
    assert seen == [{10, 11}, {30, 31} | context, {40} | context]


@pytest.mark.parametrize("readout", ["pooled", "mean"])
def test_split_of_no_layer_is_shared(readout):
    split, items = make_impressions([[10, 11, 12]], [[[30, 31], [40], [50, 51]]])
    layout = make_layout(START)
    ((batch, _),) = eval_batches(split, items, layout, rows=1, tokens=TOKENS, candidates=SLOTS)
    params = model("shared", readout)[1]
    found = forward(model("split", readout, 0)[0], params, batch)
    np.testing.assert_array_equal(found, forward(model("shared", readout)[0], params, batch))


def test_split_layers_beyond_the_encoder_are_refused():
    with pytest.raises(InputError, match=r"model\.split_layers: found 4, expected -1 to the 3 layers"):
        models.build(config.Model(interaction="split", split_layers=4), BERT, 1)


@given(st.lists(st.tuples(st.lists(st.integers(3, 5), max_size=3), st.integers(0, 2), st.integers(0, 3)), max_size=12))
def test_joined_contexts_are_the_runs_of_equal_ones(rows):
    split, _ = make_impressions([text for text, _, _ in rows], [[[9]] * count for _, _, count in rows])
    split.context_features["device"] = np.array([device for _, device, _ in rows], np.int32)
    joined = join_equal_contexts(split)
    assert joined.candidates[-1] == split.candidates[-1]
    before = None
    expected = []
    for text, device, count in rows:
        if (text, device) == before:
            expected[-1] += count
        else:
            expected.append(count)
        before = text, device
    assert np.diff(joined.candidates).tolist() == expected
