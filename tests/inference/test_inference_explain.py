"""`Scorer.explain` against captum's integrated gradients on the same weights in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from models import make_spec

from srsjax.config import Mesh, Model
from srsjax.data.inputs import InputSpec
from srsjax.data.store.tokenizer import train_tokenizer
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.model import ctr, hf_export
from srsjax.model.bert import BertConfig
from srsjax.model.spec import Outputs

WORDS = ["red", "blue", "green", "wool", "coat", "shoe", "shoes", "winter", "rain", "norvik", "simple", "warm", "for"]
PAIRS = [("red winter coat", "norvik coat wool"), ("blue shoes", "simple green shoe for rain"), ("warm", "")]
LONGEST = 24


def save(folder, outputs: tuple[Outputs, ...]):
    text = train_tokenizer([" ".join(WORDS)] * 3, 200, lowercase=True)
    bert = BertConfig(text.vocab_size, 32, 2, 4, 64, 64, initializer_range=0.2)
    spec = make_spec(Model(interaction="cross", readout="pooled"), bert)
    spec = type(spec)(**{**vars(spec), "outputs": outputs})
    params = ctr.init(spec, jax.random.key(1))
    params["head/dense/kernel"] = params["head/dense/kernel"] * 20
    hf_export.save_pairs(folder, params, spec, text, LONGEST)
    return folder


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return save(tmp_path_factory.mktemp("binary"), (Outputs("LABEL_0", "binary"),))


@pytest.fixture(scope="module")
def scorer(binary):
    return Scorer.load(binary, mesh=Mesh(8))


def captum_attributions(folder, pair) -> np.ndarray:
    """Of each token, special ones included, of a pair alone."""
    captum = pytest.importorskip("captum.attr")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer([pair[0]], [pair[1]], return_tensors="pt")
    ids = encoded["input_ids"]
    special = torch.isin(ids, torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id]))
    baseline = torch.where(special, ids, tokenizer.mask_token_id)

    def logit(words, types, mask):
        return model(input_ids=words, token_type_ids=types, attention_mask=mask).logits[:, 0]

    layer = captum.LayerIntegratedGradients(logit, model.bert.embeddings.word_embeddings)
    found = layer.attribute(
        ids, baseline, additional_forward_args=(encoded["token_type_ids"], encoded["attention_mask"]), n_steps=200
    )
    return found.sum(-1)[0][~special[0]].detach().numpy()


@pytest.mark.parametrize("pair", PAIRS[:2], ids=" ".join)
def test_values_of_tokens_are_captums(binary, scorer, pair):
    explanation = scorer.explain(pair)
    found = np.array([token.value for token in explanation.tokens])
    expected = captum_attributions(binary, pair)
    assert np.ptp(expected) > 0.05
    # Both are numerical integrals of the same function, good to about half a percent of the sum (captum's of 200
    # points to less).
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).sum())
    assert explanation.logit == pytest.approx(scorer.predict(pair, logits=True), abs=1e-4)


def test_values_sum_to_the_difference_of_the_logits_packed_and_alone(scorer):
    together = scorer.explain(PAIRS)
    for pair, explanation in zip(PAIRS, together, strict=True):
        difference = explanation.logit - explanation.baseline
        assert abs(explanation.error) <= max(0.01 * abs(difference), 5e-4)
        alone = scorer.explain(pair)
        np.testing.assert_allclose(
            [token.value for token in alone.tokens], [token.value for token in explanation.tokens], atol=1e-3
        )
        assert [token.token for token in alone.tokens] == [token.token for token in explanation.tokens]
    sides = [(token.side, token.token) for token in together[0].tokens]
    assert sides == [("context", w) for w in PAIRS[0][0].split()] + [("candidate", w) for w in PAIRS[0][1].split()]


def test_the_largest_values_are_of_whole_words(scorer):
    explanation = scorer.explain(("norvik coat", "winters winters"))
    words = dict(explanation.largest(9))
    pieces = [token for token in explanation.tokens if token.side == "candidate"]
    assert len(pieces) > 2 and words["winters (candidate)"] == pytest.approx(sum(token.value for token in pieces))
    assert sum(words.values()) == pytest.approx(explanation.text)
    assert [*words.values()] == sorted(words.values(), key=abs, reverse=True)


def test_a_class_is_explained_the_most_probable_one_if_none_is_named(tmp_path):
    folder = save(tmp_path / "classes", (Outputs("label", "multiclass", 3, ("no", "some", "yes")),))
    scorer = Scorer.load(folder, mesh=Mesh(8))
    logits = scorer.predict(PAIRS, logits=True)
    for row, explanation in zip(logits, scorer.explain(PAIRS), strict=True):
        assert explanation.output == f"label/{('no', 'some', 'yes')[row.argmax()]}"
        assert explanation.logit == pytest.approx(row.max(), abs=1e-4)
    assert scorer.explain(PAIRS[0], task="label/no").logit == pytest.approx(logits[0, 0], abs=1e-4)
    with pytest.raises(InputError, match="label/some"):
        scorer.explain(PAIRS[0], task="label/sum")


def test_weights_of_towers_need_features_of_the_candidate(scorer):
    """Its vector is then that of its text alone: there is nothing to weigh."""
    age = InputSpec("age", "context", "numeric", 1)
    spec = make_spec(Model(interaction="towers", combine="attention"), scorer.session.spec.encoder, 1, (age,))
    of = (scorer.params, scorer.encoder, scorer.shape)
    with pytest.raises(InputError, match=r"weights: found .* features of the context alone"):
        Scorer(scorer.config, replace(scorer.session, spec=spec), *of).weights(PAIRS)


def test_int8_weights_are_explained_as_what_they_stand_for(binary, scorer):
    small = Scorer.load(binary, mesh=Mesh(8), quantize="int8").explain(PAIRS[0])
    whole = scorer.explain(PAIRS[0])
    # Weights are off by at most 1/254 of the largest of their channel.
    assert small.logit == pytest.approx(whole.logit, abs=0.05 * abs(whole.logit) + 0.02)
