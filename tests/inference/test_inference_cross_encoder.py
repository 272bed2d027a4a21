"""Hugging Face cross-encoders in `Scorer`, against transformers and sentence-transformers on the same folder."""

import json

import jax
import numpy as np
import pytest
from models import make_spec

from srsjax.config import Mesh, Model
from srsjax.data.store.tokenizer import load_tokenizer, train_tokenizer
from srsjax.errors import InputError
from srsjax.inference.cross_encoder import longest_first
from srsjax.inference.scorer import Scorer
from srsjax.model import ctr, hf_export
from srsjax.model.bert import BertConfig
from srsjax.model.spec import Outputs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["red", "blue", "green", "wool", "coat", "shoe", "shoes", "winter", "rain", "norvik", "simple", "warm", "for"]
LABELS = {
    "one": (Outputs("LABEL_0", "binary"),),
    "number": (Outputs("stars", "regression"),),
    "two": (Outputs("click", "binary"), Outputs("buy", "binary")),
    "classes": (Outputs("label", "multiclass", 3, ("no", "some", "yes")),),
}
LONGEST = 24
ATOL = 1e-4
"""float32 forward passes of two libraries, in another order of sums; logits are of order 1."""


def random_texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 20))) for _ in range(count)]


@pytest.fixture(scope="module", params=[*((name, "bert") for name in LABELS), ("one", "roberta")], ids="-".join)
def folder(request, tmp_path_factory):
    """A folder as `srsjax.export` writes it, of random weights."""
    name, family = request.param
    folder, outputs = tmp_path_factory.mktemp(name), LABELS[name]
    text = train_tokenizer([" ".join(WORDS)] * 3, 200, lowercase=True)
    offset = 2 if family == "roberta" else 0
    bert = BertConfig(text.vocab_size, 32, 2, 4, 64, 64, position_offset=offset, initializer_range=0.5)
    spec = make_spec(Model(interaction="cross", readout="pooled"), bert)
    spec = type(spec)(**{**vars(spec), "outputs": outputs})
    params = ctr.init(spec, jax.random.key(1))
    params["head/dense/kernel"] = params["head/dense/kernel"] * 20
    hf_export.save_pairs(folder, params, spec, text, LONGEST)
    return folder


def reference(folder, pairs) -> np.ndarray:
    """Logits [n, K] of transformers, each pair alone so that no padding is there."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    logits = []
    for first, second in pairs:
        # Lists: of a single pair transformers takes an empty second text for none.
        encoded = tokenizer([first], [second], truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**encoded).logits[0].numpy())
    return np.stack(logits)


def test_scores_are_those_of_transformers(folder):
    pairs = list(zip(random_texts(40, 0), random_texts(40, 1), strict=True))
    scorer, expected = Scorer.load(folder, mesh=Mesh(8)), reference(folder, pairs)
    assert max(len(first.split()) + len(second.split()) for first, second in pairs) > LONGEST  # some are cut
    logits = scorer.predict(pairs, logits=True).reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, atol=ATOL)
    assert np.ptp(expected) > 0.1
    problem = json.loads((folder / "config.json").read_text()).get("problem_type")
    shares = {"regression": expected, "single_label_classification": torch.tensor(expected).softmax(1).numpy()}
    scores = shares.get(problem, 1 / (1 + np.exp(-expected)))
    np.testing.assert_allclose(scorer.predict(pairs).reshape(expected.shape), scores, atol=ATOL)


def test_rank_is_that_of_sentence_transformers(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    raw = json.loads((folder / "config.json").read_text())
    if len(raw["id2label"]) > 1 or raw.get("problem_type") == "regression":
        pytest.skip("CrossEncoder.rank wants one label, of which it takes the logistic")
    query, documents = "red winter coat", random_texts(9, 3)
    peer = sentence_transformers.CrossEncoder(str(folder), max_length=LONGEST, device="cpu")
    expected = peer.rank(query, documents, 4, True)
    found = Scorer.load(folder, mesh=Mesh(8)).rank(query, documents, 4, True)
    assert [set(entry) for entry in found] == [set(entry) for entry in expected]
    np.testing.assert_allclose([e["score"] for e in found], [e["score"] for e in expected], atol=ATOL)
    assert [e["text"] for e in found] == [e["text"] for e in expected]


@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_what_sentence_transformers_saved_gives_its_scores(folder, tmp_path, activation):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    if len(json.loads((folder / "config.json").read_text())["id2label"]) > 1:
        pytest.skip("of several labels CrossEncoder returns logits, Scorer probabilities")
    peer = sentence_transformers.CrossEncoder(
        str(folder), max_length=LONGEST, device="cpu", activation_fn=getattr(torch.nn, activation)()
    )
    peer.save_pretrained(str(tmp_path / "saved"))
    pairs = list(zip(random_texts(6, 7), random_texts(6, 8), strict=True))
    scorer = Scorer.load(tmp_path / "saved", mesh=Mesh(8), max_length=LONGEST)
    np.testing.assert_allclose(scorer.predict(pairs), peer.predict(pairs), atol=ATOL)


def test_pairs_are_cut_as_transformers_cuts_them(folder):
    text = load_tokenizer(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for most in (4, 7, 8):
        for first, second in zip(random_texts(60, 5), random_texts(60, 6), strict=True):
            ids = [text.encode([each], 99)[0].values for each in (first, second)]
            kept = longest_first(*(np.array([len(own)]) for own in ids), most)
            expected = tokenizer([first], [second], truncation=True, max_length=most + 3)["input_ids"][0]
            own = [each.tolist()[: int(count[0])] for each, count in zip(ids, kept, strict=True)]
            special = text.template
            assert [*special.prefix, *own[0], *special.between, *own[1], *special.suffix] == expected


def test_an_encoder_without_a_head_is_refused(minilm):
    with pytest.raises(InputError) as error:
        Scorer.load(minilm)
    assert "no classification head" in str(error.value) and "--model.pretrained" in str(error.value)


def test_lengths_that_do_not_fit_are_refused(folder):
    with pytest.raises(InputError, match="max_length: found 600, expected at most the 6"):
        Scorer.load(folder, max_length=600)
    with pytest.raises(InputError, match="max_length: found 4, expected at least 5"):
        Scorer.load(folder, max_length=4)
