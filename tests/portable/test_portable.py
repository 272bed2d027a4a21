"""Programs exported by `jax.export`: the Python of their README gives the scores of `Scorer`, without srsjax."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from portable_cases import bert_text, made

from srsjax.config import Catalogue, Categorical, Data, History, Numeric, Schema, Task, Text, Vector
from srsjax.data.preparing.statistics import Fitted
from srsjax.inference.scorer import Scorer
from srsjax.portable import folder as portable
from srsjax.portable.program import PLATFORMS
from srsjax.runs.quantization import quantized
from srsjax.runs.session import with_params

pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install -e '.[stablehlo]'")

CONTEXTS = [
    {"query": "red winter coat", "place": "shop"},
    {"query": "", "place": "the rain of winter"},
    {"query": "shoes for the rain, blue or green and much longer than its budget", "place": ""},
]
CANDIDATES = [
    {"title": "norvik red coat", "description": "simple wool"},
    {"title": "shoe [SEP] warm", "description": ""},
    {"title": " ", "description": ""},
    {"title": "blue rain shoes " * 9, "description": "warm, " * 20},
]
PAIRS = [(context, candidate) for context in CONTEXTS for candidate in CANDIDATES]
SCHEMA = Schema(
    context=(Text("query", max_tokens=8), Text("place", max_tokens=4)),
    candidate=(Text("title", max_tokens=12), Text("description", max_tokens=6, fill="none")),
    tasks=(Task("click"),),
)
ATOL = 1e-6
"""The same operations of float32 on scores of at most 1, in rows of other widths: sums of at most 64 numbers of order 1
are added in another order, which changes their last bits (6e-8) and little more after two layers."""


@pytest.fixture(scope="module")
def text():
    return bert_text()


def saved(model, folder) -> SimpleNamespace:
    """Writes the folder of a model and runs the Python of its README: its names."""
    portable.save(folder, model.params, model.scorer.session.compute, model.about, model.fitted)
    names: dict = {}
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(program(folder), "README.md", "exec"), names)
    return SimpleNamespace(**names)


def program(folder) -> str:
    """The Python of the README."""
    return re.search(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]


def check(model, folder, pairs=PAIRS, atol: float = ATOL) -> None:
    """The scores of all pairs, together and alone, are those of the scorer, and tell the pairs apart."""
    loaded = saved(model, folder)
    found, tasks = loaded.score(pairs), model.about.schema.tasks
    expected = {}
    for task in tasks:
        given = pairs if model.about.schema.context else [candidate for _, candidate in pairs]
        expected[task.name] = model.scorer.predict(given, task=task.name)
    assert list(found) == sorted(expected)  # a dict of a pytree
    for name, scores in expected.items():
        assert found[name].shape == scores.shape and found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], scores, rtol=atol, atol=atol)
        assert np.ptp(scores, axis=0).min() > 0.005
    alone = loaded.score(pairs[-1:])
    for name, scores in expected.items():
        np.testing.assert_allclose(alone[name], scores[-1:], rtol=atol, atol=atol)


@pytest.mark.parametrize(
    "fields",
    [
        {"interaction": "cross"},
        {"interaction": "cross", "readout": "mean"},
        {"interaction": "shared"},
        {"interaction": "split", "readout": "first", "split_layers": 1},
        {"interaction": "towers", "readout": "mean"},
        {"interaction": "towers", "product": "bilinear"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_the_program_gives_the_scores_of_the_model(tmp_path, text, fields):
    check(made(text, SCHEMA, **fields), tmp_path)


def test_a_pair_with_two_separators_and_one_token_type(tmp_path, text):
    """As RoBERTa joins texts."""
    template = replace(text.template, between=text.template.between * 2, candidate_type=0)
    check(made(replace(text, template=template), SCHEMA), tmp_path)


def test_candidates_without_context(tmp_path, text):
    schema = replace(SCHEMA, context=())
    check(made(text, schema), tmp_path, [({}, candidate) for candidate in CANDIDATES])


def test_all_kinds_of_tasks(tmp_path, text):
    fitted = Fitted(classes={"stars": ["one", "two", "three"]}, labels={"price": {"mean": 20.0, "std": 7.0}})
    tasks = (
        Task("click"),
        Task("buy", after="click"),
        Task("order", kind="listwise"),
        Task("stars", kind="multiclass"),
        Task("price", kind="regression"),
    )
    model = made(text, replace(SCHEMA, tasks=tasks), fitted=fitted, experts=2)
    check(model, tmp_path)
    outputs = json.loads((tmp_path / "inputs.json").read_text())["outputs"]
    assert outputs["scores"]["stars"]["classes"] == ["one", "two", "three"]
    assert outputs["logits"]["shape"] == ["pairs", 7]


def test_a_contrastive_task_is_scored_by_its_logit(tmp_path, text):
    schema = replace(SCHEMA, tasks=(Task("click", kind="contrastive"),))
    check(made(text, schema, interaction="towers", readout="mean"), tmp_path)


NUMBERS = {name: {"mean": mean, "std": std} for name, mean, std in (("price", 2.0, 1.0), ("age", 30.0, 9.0))}
FITTED = Fitted(
    fills={"age": 31.0},
    vocabularies={"brand": ["norvik", "simple"], "seen": ["x"]},
    numbers=NUMBERS | {"hour": {"mean": 1.0, "std": 1.0}, "rank": {"mean": 1.0, "std": 1.0}},
    edges={"rank": [1.0, 3.0]},
)
FEATURES = Schema(
    context=(
        Text("query", max_tokens=8),
        Numeric("age", missing="median"),
        Numeric("hour", scale="cyclic", period=86400.0, missing="constant"),
        Categorical("seen", like="brand", max_values=3, missing="constant"),
    ),
    candidate=(
        Text("title", max_tokens=12),
        Categorical("brand", missing="constant"),
        Categorical("shop", hash_buckets=7, missing="constant"),
        Categorical("tags", hash_buckets=5, max_values=2, missing="constant", fill="none"),
        Numeric("price", scale="log", missing="indicator"),
        Numeric("rank", scale="quantile", buckets=3, missing="constant", fill=2.0),
        Numeric("place", training_only=True, missing="constant", fill=3.0),
        Vector("picture", size=3, missing="indicator"),
    ),
    tasks=(Task("click"),),
)
FITTED.numbers["place"] = {"mean": 2.0, "std": 1.0}
VALUES = [
    ({"query": "red coat", "age": 20.0, "hour": 1.7e9, "seen": ["norvik", "unheard", "simple", "norvik"]}, 0),
    ({"query": "shoes", "age": None, "hour": 3600.0 * 5, "seen": None}, 1),
    ({"query": "rain", "age": 70.0, "hour": None, "seen": []}, 2),
]
ITEMS = [
    {"title": "coat", "brand": "norvik", "shop": "Berlin", "tags": ["a", "b", "c"], "price": 9.5, "rank": 1.0},
    {"title": "shoe", "brand": "unheard", "shop": "Zürich", "tags": None, "price": None, "rank": 7.0},
    {"title": "rain", "brand": None, "shop": None, "tags": ["b"], "price": 0.0, "rank": None},
]
PICTURES = [[0.5, -1.0, 2.0], None, [0.0, 0.1, 0.2]]


def mixed_pairs() -> list[tuple[dict, dict]]:
    items = [item | {"picture": picture, "place": None} for item, picture in zip(ITEMS, PICTURES, strict=True)]
    return [(context, items[(at + step) % 3]) for context, at in VALUES for step in (0, 1)]


@pytest.mark.parametrize(
    "fields", [{"combine": "dcn"}, {"combine": "attention", "interaction": "towers"}], ids=["dcn", "towers"]
)
def test_ids_numbers_and_vectors_are_inputs(tmp_path, text, fields):
    check(made(text, FEATURES, fitted=FITTED, **fields), tmp_path, mixed_pairs())
    inputs = json.loads((tmp_path / "inputs.json").read_text())["inputs"]["features"]
    assert inputs["picture"] == {"shape": ["pairs", 3], "dtype": "float32"}
    assert inputs["seen"] == {"shape": ["pairs", 3], "dtype": "int32"}
    assert "place" not in inputs  # read in training alone


def test_a_model_without_text(tmp_path, text):
    sides = (
        tuple(each for each in side if not isinstance(each, Text)) for side in (FEATURES.context, FEATURES.candidate)
    )
    schema = Schema(*sides, tasks=(Task("click"),))
    pairs = [
        tuple({name: x for name, x in side.items() if name not in ("query", "title")} for side in pair)
        for pair in mixed_pairs()
    ]
    check(made(text, schema, fitted=FITTED, combine="mlp", combine_layers=(8,)), tmp_path, pairs)
    assert not (tmp_path / "tokenizer.json").exists()


def test_bfloat16_is_the_same_program_in_bfloat16(tmp_path, text):
    """Rounding to 8 bits may fall either way where sums are in another order: scores differ by some steps of 2^-9."""
    model = made(text, SCHEMA, dtype="bfloat16")
    rounded = saved(model, tmp_path).score(PAIRS)["click"]
    np.testing.assert_allclose(rounded, model.scorer.predict(PAIRS), atol=0.02)
    exact = made(text, SCHEMA).scorer.predict(PAIRS)
    assert 1e-4 < np.abs(rounded - exact).max() < 0.05


def quantised(model):
    """The same model with 8-bit weights."""
    scorer = model.scorer
    session, params = with_params(scorer.session, quantized(model.params))
    scorer = Scorer(scorer.config, session, params, scorer.encoder, scorer.shape)
    return replace(model, scorer=scorer, params=params)


def test_8_bit_weights_are_in_the_program(tmp_path, text):
    """Sums in another order may round an activation to the next of 255 numbers; a token has 16 of them, so that a score
    moves by some 1e-3 at most."""
    exact = made(text, SCHEMA)
    model = quantised(exact)
    found, expected = saved(model, tmp_path / "int8").score(PAIRS)["click"], model.scorer.predict(PAIRS)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert 1e-4 < np.abs(expected - exact.scorer.predict(PAIRS)).max() < 0.1
    saved(exact, tmp_path / "float32")
    before, after = ((tmp_path / name / "weights.safetensors").stat().st_size for name in ("float32", "int8"))
    assert after < 0.7 * before


@pytest.mark.parametrize("interaction", ["cross", "shared", "towers"])
def test_8_bit_scores_do_not_depend_on_what_a_pair_is_packed_with(text, interaction):
    scorer = quantised(made(text, SCHEMA, interaction=interaction)).scorer
    alone = [scorer.predict(pair) for pair in PAIRS]
    np.testing.assert_allclose(scorer.predict(PAIRS), alone, atol=2e-3)  # as above
    assert np.ptp(alone) > 0.01


def with_history(folder, text):
    """A model whose context has a history, and values of it: as keys for the scorer, as texts for a program."""
    items = {"item_id": [1, 2, 3], "title": ["red coat", "blue [SEP] shoes for the rain", "warm wool"]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    catalogue = Catalogue(str(folder / "items.parquet"))
    history = History("seen", catalogue="items", fields=("title",), max_items=3, item_tokens=4, max_tokens=8)
    schema = replace(SCHEMA, context=(Text("query", max_tokens=8), history))
    model = made(text, schema, Data(catalogues=(catalogue,)))
    keys = [[], [3], [2, 1], [1, 2, 3, 1]]
    by_key = [({"query": "red", "seen": seen}, CANDIDATES[0]) for seen in keys]
    by_text = [({"query": "red", "seen": [[items["title"][k - 1]] for k in seen]}, CANDIDATES[0]) for seen in keys]
    return model, by_key, by_text


def test_times_of_a_list_are_given_as_the_categories_that_the_readme_names(tmp_path, text):
    lists = {"max_values": 3, "missing": "constant"}
    vocabularies = {"seen": ["a", "b"], "ago": ["2^5 s", "2^6 s", "later"], "day": ["Thursday", "Friday"]}
    context = (
        Categorical("seen", **lists),
        Categorical("ago", column="at", times="recency", until="now", along="seen", **lists),
        Categorical("day", column="at", times="weekday", along="seen", **lists),
    )
    candidate = (Categorical("brand", hash_buckets=9, missing="constant"),)
    schema = Schema(context, candidate, tasks=(Task("click"),))
    model = made(text, schema, fitted=Fitted(vocabularies=vocabularies), combine="mlp", combine_layers=(8,))
    loaded = saved(model, tmp_path)
    item = {"brand": "x"}
    given = [
        ({"seen": ["a", "b"], "at": [100.0, 36.0], "now": 100.0}, item),  # of 1970-01-01, a Thursday
        ({"seen": ["b"], "at": [200.0], "now": 100.0}, item),
        ({"seen": ["a", "a"], "at": [86400.0, 86460.0], "now": 86500.0}, item),
    ]
    names = [
        ({"seen": ["a", "b"], "ago": ["0 s", "2^6 s"], "day": ["Thursday"] * 2}, item),
        ({"seen": ["b"], "ago": ["later"], "day": ["Thursday"]}, item),
        ({"seen": ["a", "a"], "ago": ["2^6 s", "2^5 s"], "day": ["Friday"] * 2}, item),
    ]
    expected = model.scorer.predict(given)
    np.testing.assert_allclose(loaded.score(names)["click"], expected, rtol=ATOL, atol=ATOL)
    assert len(set(np.round(expected, 4))) == 3
    card = (tmp_path / "README.md").read_text()
    assert "how long before `now` it was, `2^k s`" in card and "its weekday in UTC, `Monday` to `Sunday`" in card


ISOLATED = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"srsjax", "flax", "transformers", "pyarrow", "optax", "grain", "huggingface_hub"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocker())
exec(open("program.py").read())
print(json.dumps(score(json.load(open("pairs.json")))["click"].tolist()))
"""


def test_a_process_without_srsjax_gives_the_scores(tmp_path, text):
    model, by_key, by_text = with_history(tmp_path, text)
    folder = tmp_path / "out"
    saved(model, folder)
    (folder / "program.py").write_text(program(folder))
    (folder / "pairs.json").write_text(json.dumps(by_text))
    done = subprocess.run([sys.executable, "-c", ISOLATED], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = model.scorer.predict(by_key)
    np.testing.assert_allclose(found, expected, atol=ATOL)
    assert np.ptp(expected) > 0.005


def test_one_artifact_is_for_all_platforms_and_any_number_of_pairs(tmp_path, text):
    from jax import export

    loaded = saved(made(text, SCHEMA), tmp_path)
    read = export.deserialize(bytearray((tmp_path / "scores.jax").read_bytes()))
    assert read.platforms == PLATFORMS and read.nr_devices == 1
    assert sum(path.stat().st_size for path in tmp_path.glob("scores.jax")) < 100_000  # weights are beside it
    for count in (1, 5, 12):
        assert loaded.score(PAIRS[:count])["click"].shape == (count,)
