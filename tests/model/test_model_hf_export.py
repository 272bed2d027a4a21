"""Exported folders: other libraries load them, and the Python of their model cards gives the scores of `Scorer`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import stat
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import make_spec

from srsjax import export
from srsjax.config import Batch, Catalogue, Data, History, Mesh, Model, Numeric, Schema, Task, Text, TrainConfig
from srsjax.data.batches.layout import make_layout
from srsjax.data.inputs import InputSpec
from srsjax.data.preparing.catalogue import read_catalogues
from srsjax.data.preparing.encode import Encoder, refuse
from srsjax.data.preparing.fit import Fitted
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from srsjax.inference.scorer import Scorer
from srsjax.model import hf, hf_card, hf_export
from srsjax.model.bert import BertConfig
from srsjax.model.spec import encoder_config
from srsjax.runs.session import open_session
from srsjax.runs.shapes import batch_shape

WORDS = "red blue green wool coat shoe shoes winter rain norvik simple warm for the a of"
CONTEXTS = [
    {"query": "red winter coat", "place": "shop"},
    {"query": "", "place": "the rain of winter"},
    {"query": "shoes for the rain, blue or green and much longer than its budget", "place": ""},
]
CANDIDATES = [
    {"title": "norvik red coat", "description": "simple wool"},
    {"title": "shoe [SEP] warm </s>", "description": ""},
    {"title": " ", "description": ""},
    {"title": "blue rain shoes " * 9, "description": "warm, " * 20},
]
SCHEMA = Schema(
    context=(Text("query", max_tokens=8), Text("place", max_tokens=4)),
    candidate=(Text("title", max_tokens=12), Text("description", max_tokens=6, fill="none")),
    tasks=(Task("click"), Task("buy", kind="listwise")),
)
CANDIDATES_ONLY = replace(SCHEMA, context=())
READOUTS = ("pooled", "first", "mean")
ATOL = 1e-5
"""float32 forward passes of two libraries, in another order of sums; parameters make logits of order 1."""


@pytest.fixture(scope="module")
def bert_text() -> TextEncoder:
    return train_tokenizer([WORDS] * 5, 400, lowercase=True)


@pytest.fixture(scope="module")
def roberta_text(tmp_path_factory) -> TextEncoder:
    """Byte-level BPE as RoBERTa's: two separators between the texts of a pair, one token type."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS] * 5, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    folder = tmp_path_factory.mktemp("roberta")
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    settings = {"tokenizer_class": "PreTrainedTokenizer"} | {f"{role}_token": token for role, token in named.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def exported(
    folder, text: TextEncoder, schema: Schema = SCHEMA, features=(), data: Data = Data(), head_size: int = 0, **model
) -> SimpleNamespace:
    """A model with random parameters, or those of `pretrained`, its `Scorer`, and the folder written of it."""
    config = TrainConfig(
        schema=schema,
        data=data,
        model=Model(dtype="float32", attention="xla", **model),
        mesh=Mesh(1),
        batch=Batch(rows=2, tokens=64),
    )
    pretrained = config.model.pretrained
    bert = encoder_config(config.model, text.vocab_size) if pretrained else small_encoder(text, config.model.readout)
    bert = replace(bert, head_size=head_size)
    spec = make_spec(config.model, bert, features=features)
    layout = make_layout(config, text, spec.interaction.shares_context, spec.interaction.apart)
    spec = replace(
        spec,
        outputs=tuple(replace(spec.outputs[0], task=task.name, kind=task.kind) for task in schema.tasks),
        has_context=layout.has_context,
        candidate_start=layout.candidate_start,
        tokens=64,
        candidates=8,
    )
    session = open_session(config, spec, devices=jax.devices()[:1], training=False)
    params = random_params(session.shapes, head=3.0 if spec.interaction.name == "towers" else 0.7)
    params |= hf.load_weights(pretrained, bert)[0] if pretrained else {}
    sources = Sources(schema, data)
    encoder = Encoder(sources, read_catalogues(sources, refuse, splitting=False), text, Fitted())
    scorer = Scorer(config, session, params, encoder, batch_shape(config, spec, layout, session.mesh))
    about = hf_card.Described("shop", "runs/shop", spec, schema, text, layout, {})
    export.write(folder, params, about)
    return SimpleNamespace(folder=folder, scorer=scorer, about=about, params=params)


def small_encoder(text: TextEncoder, readout: str) -> BertConfig:
    """An encoder of the family of the tokenizer."""
    roberta = text.template.candidate_type == 0
    return BertConfig(
        text.vocab_size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=50,
        type_vocab_size=1 if roberta else 2,
        layer_norm_eps=1e-5 if roberta else 1e-12,
        position_offset=2 if roberta else 0,
        has_pooler=readout == "pooled",
    )


def random_params(shapes, head: float) -> dict[str, np.ndarray]:
    """Parameters no two of which are alike; the head's spread keeps scores away from 0 and 1."""
    rng = np.random.default_rng(0)
    spread = {path: head if path == "head/dense/kernel" else 0.2 for path in shapes}
    centre = {path: 1.0 if path.endswith("norm/scale") else 0.0 for path in shapes}
    return {path: rng.normal(centre[path], spread[path], x.shape).astype(np.float32) for path, x in shapes.items()}


def programs(folder) -> list[str]:
    """The Python of a card as it is printed."""
    return re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def run(program: str, folder) -> SimpleNamespace:
    """Runs a program in a folder: its names, and what it printed as a value."""
    printed, names = io.StringIO(), {}
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), names)
    return SimpleNamespace(**names, printed=eval(printed.getvalue().strip().splitlines()[-1]))


def check_program(made: SimpleNamespace, program: str) -> None:
    """The program gives the scores of every pair of CONTEXTS and CANDIDATES, and prints those of its own example."""
    ran = run(program, made.folder)
    has_context = bool(made.about.schema.context)
    pairs = [(context, candidate) for context in CONTEXTS for candidate in CANDIDATES]
    expected = made.scorer.predict(pairs if has_context else CANDIDATES * len(CONTEXTS))
    scores = [ran.score(*pair) for pair in pairs]
    assert all(list(score) == ["click", "buy"] for score in scores)
    np.testing.assert_allclose([list(score.values()) for score in scores], expected, atol=ATOL)
    assert np.ptp(expected, axis=0).min() > 0.005  # scores tell these pairs apart by much more than the tolerance
    example = made.scorer.predict((ran.context, ran.candidate) if has_context else ran.candidate)
    np.testing.assert_allclose(list(ran.printed.values()), example, atol=ATOL)


def needs_torch() -> None:
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[reference]'")


# ---------------------------------------------------------------------------------------------- the code of the card


@pytest.mark.parametrize(
    ("family", "interaction", "readout"),
    [
        *(("bert", interaction, readout) for interaction in ("cross", "towers") for readout in READOUTS),
        *(("roberta", "cross", "pooled"), ("roberta", "towers", "pooled"), ("roberta", "towers", "mean")),
    ],
)
def test_the_code_of_the_card_gives_the_scores(tmp_path, request, family, interaction, readout):
    needs_torch()
    made = exported(
        tmp_path / "out", request.getfixturevalue(f"{family}_text"), interaction=interaction, readout=readout
    )
    check_program(made, programs(made.folder)[0])


@pytest.mark.parametrize("interaction", ["cross", "towers"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_torch_computes_an_encoder_whose_heads_were_left_out(tmp_path, request, family, interaction):
    """Two heads are left of four: transformers has them, and two of zeros."""
    needs_torch()
    text = request.getfixturevalue(f"{family}_text")
    made = exported(tmp_path / "out", text, interaction=interaction, readout="pooled", head_size=4)
    assert made.params["bert/layers/0/attention/out/kernel"].shape == (8, 16)
    written = [json.loads(file.read_text()) for file in made.folder.rglob("config.json")]
    assert {raw["num_attention_heads"] for raw in written if "num_attention_heads" in raw} == {4}
    check_program(made, programs(made.folder)[0])


@pytest.mark.parametrize("readout", ["pooled", "mean"])
def test_the_code_of_the_card_gives_the_scores_without_context(tmp_path, bert_text, readout):
    needs_torch()
    made = exported(tmp_path / "out", bert_text, CANDIDATES_ONLY, readout=readout)
    check_program(made, programs(made.folder)[0])


def test_both_towers_are_the_same_encoder(tmp_path, bert_text):
    made = exported(tmp_path / "out", bert_text, interaction="towers", readout="mean")
    for name in ("config.json", "model.safetensors"):
        assert (made.folder / "context" / name).read_bytes() == (made.folder / "candidate" / name).read_bytes()


def test_the_code_of_the_card_gives_the_scores_of_minilm(tmp_path, minilm):
    needs_torch()
    made = exported(tmp_path / "out", load_tokenizer(minilm), pretrained=minilm, interaction="towers", readout="mean")
    check_program(made, programs(made.folder)[0])


def test_histories_are_read_as_in_training(tmp_path, bert_text):
    needs_torch()
    titles = ["red coat", "blue shoes for the rain", "", "warm wool", "a simple green winter shoe"]
    brands = ["norvik", "", "", "of the rain", "norvik"]
    items = {"item_id": list("abcde"), "title": titles, "brand": brands}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    data = Data(catalogues=(Catalogue(str(tmp_path / "items.parquet"), name="items", key="item_id"),))
    for order, budget in (("newest_first", 7), ("oldest_first", 8), ("oldest_first", 40)):
        clicked = History(
            "clicked", fields=("title", "brand"), order=order, max_items=4, item_tokens=4, max_tokens=budget
        )
        schema = replace(SCHEMA, context=(SCHEMA.context[0], clicked))
        folder = tmp_path / f"{order}-{budget}"
        made = exported(folder, bert_text, schema, data=data)
        ran = run(programs(folder)[0], folder)
        for keys in ("", "a", "c", "ca", "acb", "abcde", "edcba", "eeee", "bdab"):
            context = {"query": "red coat", "clicked": list(keys)}
            encoded = made.scorer.encoder.encode_values([context], [[CANDIDATES[0]]]).split.context[0]
            newest = keys if order == "newest_first" else keys[::-1]
            texts = [(titles["abcde".index(key)], brands["abcde".index(key)]) for key in newest]
            expected = [*bert_text.template.prefix, *encoded, *bert_text.template.between]
            assert ran.context_ids(context | {"clicked": texts}) == expected


# ---------------------------------------------------------------------------------------------- sentence-transformers


@pytest.mark.parametrize("readout", READOUTS)
def test_towers_load_in_sentence_transformers(tmp_path, bert_text, readout):
    library = pytest.importorskip("sentence_transformers", reason="needs pip install -e '.[reference]'")
    made = exported(tmp_path / "out", bert_text, interaction="towers", readout=readout)
    exact, encode = programs(made.folder)
    ran, by_ids = run(encode, made.folder), run(exact, made.folder)
    np.testing.assert_allclose(list(ran.printed[0].values()), list(by_ids.printed.values()), atol=ATOL)

    fits = [CANDIDATES[0], {"title": "shoes", "description": "warm"}, {"title": " ", "description": "rain"}]
    model = library.SentenceTransformer(str(made.folder))
    scale, bias = (np.asarray(made.params[f"head/dense/{name}"]) for name in ("kernel", "bias"))
    u = model.encode_query(["red winter coat[SEP]shop"])
    v = model.encode_document(["[SEP]".join(filter(str.strip, c.values())) for c in fits])  # padded to one length
    scores = 1 / (1 + np.exp(-((u * v) @ scale + bias)))
    np.testing.assert_allclose(scores, made.scorer.predict([(CONTEXTS[0], c) for c in fits]), atol=ATOL)
    alone = library.SentenceTransformer(str(made.folder / "candidate"))
    np.testing.assert_allclose(alone.encode([fits[0]["title"]]), model.encode_document([fits[0]["title"]]), atol=1e-6)
    assert alone.max_seq_length == 12 + 6 + 1 + 2
    with pytest.raises(ValueError, match="route"):
        model.encode("which side?")


def test_the_modules_of_a_tower_are_those_that_readout_asks_for(tmp_path, bert_text):
    expected = {"pooled": ["Pooling", "Dense", "Normalize"], "first": ["Pooling", "Normalize"]}
    expected["mean"] = expected["first"]
    for readout, modules in expected.items():
        folder = exported(tmp_path / readout, bert_text, interaction="towers", readout=readout).folder
        for side in ("context", "candidate"):
            listed = json.loads((folder / side / "modules.json").read_text())
            assert [each["type"].rsplit(".", 1)[1] for each in listed] == ["Transformer", *modules]
            assert all((folder / side / each["path"]).is_dir() for each in listed)
            pooling = json.loads((folder / side / "1_Pooling/config.json").read_text())
            assert pooling["pooling_mode_mean_tokens"] == (readout == "mean") != pooling["pooling_mode_cls_token"]


# ---------------------------------------------------------------------------------------------- the folder


def test_labels_lengths_and_modes(tmp_path, bert_text):
    before = os.umask(0o027)
    try:
        pairs, towers = (exported(tmp_path / name, bert_text, interaction=name).folder for name in ("cross", "towers"))
    finally:
        os.umask(before)
    settings = json.loads((pairs / "config.json").read_text())
    assert settings["id2label"] == {"0": "click", "1": "buy"} and settings["label2id"] == {"click": 0, "buy": 1}
    assert settings["problem_type"] == "multi_label_classification"
    lengths = {
        folder: json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
        for folder in (pairs, towers / "context", towers / "candidate")
    }
    # Budgets, a separator between the two fields of a side, and special tokens.
    context, candidate = 8 + 4 + 1 + 2, 12 + 6 + 1 + 1
    assert list(lengths.values()) == [context + candidate, context, candidate + 1]  # [CLS] of its own
    files = [path for folder in (pairs, towers) for path in folder.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert not [path for path in files if path.name.endswith(".tmp")]


def test_the_tokenizer_of_an_export_reads_as_that_of_the_run(tmp_path, bert_text, roberta_text):
    for name, text in (("bert", bert_text), ("roberta", roberta_text)):
        folder = exported(tmp_path / name, text).folder
        assert load_tokenizer(folder).template == text.template
        assert load_tokenizer(folder).fingerprint == text.fingerprint


def test_transformers_pipeline_gives_the_scores_under_the_names_of_the_tasks(tmp_path, bert_text):
    needs_torch()
    from transformers import pipeline

    schema = replace(SCHEMA, context=SCHEMA.context[:1], candidate=SCHEMA.candidate[:1])
    made = exported(tmp_path / "out", bert_text, schema)
    query, title = CONTEXTS[0]["query"], CANDIDATES[0]["title"]
    classify = pipeline("text-classification", str(made.folder), device="cpu", top_k=None)
    found = {each["label"]: each["score"] for each in classify({"text": query, "text_pair": title})}
    expected = dict(zip(("click", "buy"), made.scorer.predict((query, title)), strict=True))
    assert found == pytest.approx(expected, abs=ATOL)


@pytest.mark.parametrize(
    "tasks",
    [(Task("click"),), (Task("click"), Task("buy", kind="listwise")), (Task("price", kind="regression"),)],
    ids=["click", "two", "regression"],
)
def test_cross_encoder_gives_the_scores(tmp_path, bert_text, tasks):
    library = pytest.importorskip("sentence_transformers", reason="needs pip install -e '.[reference]'")
    schema = Schema(context=SCHEMA.context[:1], candidate=SCHEMA.candidate[:1], tasks=tasks)
    made = exported(tmp_path / "out", bert_text, schema)
    pairs = [(context["query"], candidate["title"]) for context in CONTEXTS[:2] for candidate in CANDIDATES[:3]]
    pairs = [(query, title.replace("[SEP]", "").replace("</s>", "")) for query, title in pairs]
    found = library.CrossEncoder(str(made.folder), device="cpu").predict(pairs)
    np.testing.assert_allclose(found, made.scorer.predict(pairs), atol=ATOL)


@pytest.mark.parametrize("interaction", ["shared", "split"])
def test_what_transformers_cannot_compute_is_said(tmp_path, bert_text, interaction):
    folder = exported(tmp_path / "out", bert_text, interaction=interaction).folder
    card = (folder / "README.md").read_text()
    assert not programs(folder)
    assert "transformers has no class for that" in card and f"interaction `{interaction}`" in card
    assert "python -m srsjax.score --run runs/shop --input" in card
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]


def test_a_model_that_reads_other_features_is_no_classifier(tmp_path, bert_text):
    schema = replace(SCHEMA, candidate=(*SCHEMA.candidate, Numeric("price"), Numeric("age")))
    price = InputSpec("price", "candidate", "numeric", 1)
    for interaction in ("cross", "towers"):
        folder = exported(
            tmp_path / interaction, bert_text, schema, (price,), interaction=interaction, combine="concat"
        ).folder
        card = (folder / "README.md").read_text()
        assert "reads other features besides text (`price`)" in card and "Not read by this model: `age`." in card
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
        assert not (folder / "modules.json").exists() and not programs(folder)


def test_the_card_says_how_inputs_are_joined(tmp_path, bert_text):
    card = (exported(tmp_path / "out", bert_text).folder / "README.md").read_text()
    for expected in (
        "library_name: transformers",
        "A pair is `[CLS] context [SEP] candidate [SEP]`, at most 35 tokens",
        "of token type 0 up to the candidate and 1 from there on",
        "| candidate | `description` | 6 tokens | column `description`, cut at its end; `none` where it is blank or",
        "the separator `[SEP]` is put between those that are not empty",
        "| `buy` | listwise | sigmoid(logit): an order of the candidates of one context, not a probability |",
    ):
        assert expected in card


def test_an_exported_classifier_is_read_again(tmp_path, bert_text):
    made = exported(tmp_path / "out", bert_text)
    found, report = hf.load_weights(str(made.folder), made.about.spec.encoder, num_tasks=2)
    assert not (report.fresh or report.unused or report.unknown)
    for path, value in made.params.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_a_bilinear_product_is_no_model_of_another_library():
    bert = BertConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)
    for product, form in (("cosine", "towers"), ("bilinear", "parts")):
        assert hf_export.form_of(make_spec(Model(interaction="towers", product=product), bert)) == form
