"""Stored items: scores by look-up are the scores of the whole model, for whatever devices and requests."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from compilations import compilations

from srsjax.config import Mesh
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer

SMALL = (
    *("--data.shop.impressions", 300, "--data.shop.items", 400, "--data.shop.users", 30),
    *("--model.hidden_size", 32, "--model.intermediate_size", 64, "--model.num_layers", 3),
    *("--batch.rows", 8, "--batch.tokens", 160, "--max_steps", 10),
)

A_STEP = 2e-4
"""With 8-bit weights the look-up changes which tokens are in a matrix product together, thus the last bits of float32
sums; where these are rounded the other way an activation moves by 1/127 of its largest, a score by some 3e-5."""


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    """Where runs `split`, `last` (all layers split) and `shared` are."""
    folder = tmp_path_factory.mktemp("items")
    runs = {"split": ("split", -1), "last": ("split", 3), "shared": ("shared", -1)}
    for name, (interaction, layers) in runs.items():
        options = ("--model.interaction", interaction, "--model.split_layers", layers, "--run_dir", f"runs/{name}")
        done = command("train", "--config", "ctr.py", *SMALL, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def log(folder):
    return ds.dataset(sorted((folder / "data/shop").glob("log-*.parquet"))).to_table().to_pylist()


def load(folder, monkeypatch, name, mesh=None):
    monkeypatch.chdir(folder)
    return Scorer.load(f"runs/{name}", mesh=mesh)


def split_pairs(rows):
    return [({"query": row["query"], "history": row["history"]}, {"item_id": row["item_id"]}) for row in rows]


@pytest.mark.parametrize(("name", "mesh"), [("split", Mesh(8)), ("split", Mesh(2, 2, 2)), ("last", Mesh(8))])
def test_scores_with_stored_items_are_those_without(folder, monkeypatch, log, name, mesh):
    scorer = load(folder, monkeypatch, name, mesh)
    pairs = split_pairs(log[:400])
    context, items = pairs[0][0], [{"item_id": item} for item in sorted({row["item_id"] for row in log})]
    before, ranked = scorer.predict(pairs), scorer.rank(context, items)
    stored = scorer.store_items()
    assert stored.states.shape[1] == 32 and len(stored.offsets) == len(scorer.encoder.items.tokens) + 1
    # The look-up changes nothing but which tokens stand in a matrix product together.
    np.testing.assert_allclose(scorer.predict(pairs), before, rtol=0, atol=1e-6)
    again = scorer.rank(context, items)
    np.testing.assert_allclose([r["score"] for r in again], [r["score"] for r in ranked], rtol=0, atol=1e-6)
    # An item that is not of the catalogue, given by its columns, is computed as ever.
    new = [({"query": "red coat", "history": []}, {"title": "a coat", "description": "red"})]
    assert 0 < scorer.predict(new)[0] < 1


def test_states_that_were_looked_up_are_used(folder, monkeypatch, log):
    """Scores change with the stored states, and only those of the items changed."""
    scorer = load(folder, monkeypatch, "split")
    pairs = split_pairs(log[:50])
    before, stored = scorer.predict(pairs), scorer.store_items()
    rows = [scorer.encoder.encode_values([c], [[i]]).split.item[0] for c, i in pairs]
    first, last = stored.offsets[rows[0]], stored.offsets[rows[0] + 1]
    object.__setattr__(stored, "states", stored.states.at[first:last].add(1.0))
    changed = np.abs(scorer.predict(pairs) - before) > 1e-5
    np.testing.assert_array_equal(changed, np.array(rows) == rows[0])


def test_no_request_compiles_after_warm_up_with_stored_items(folder, monkeypatch, log):
    scorer = load(folder, monkeypatch, "split", Mesh(8))
    scorer.store_items()
    scorer.warm_up()
    rng = np.random.default_rng(0)
    items = [{"item_id": row["item_id"]} for row in log[:500]]
    words = ["red", "blue", "dress", "watch", "mum"]
    with compilations() as compiled:
        for size in (1, 10, 100, 500, 33):
            for length in (0, 3, 12):  # also above the budget
                context = {"query": " ".join(rng.choice(words, length)), "history": log[size]["history"][: length % 3]}
                scorer.rank(context, items[:size])
        scorer.rank(context, [{"title": "a coat", "description": "red"}])  # not of the catalogue
    assert compiled == []


@pytest.mark.parametrize(("dtype", "atol"), [("", 0), ("bfloat16", 2**-7), ("int8", 2**-6)])
def test_kept_states_give_the_scores_and_only_new_items_are_computed(folder, monkeypatch, log, tmp_path, dtype, atol):
    scorer, pairs = load(folder, monkeypatch, "split"), split_pairs(log[:100])
    exact = scorer.predict(pairs)
    place = tmp_path / "states"
    assert scorer.store_items(place, dtype).computed == len(scorer.encoder.items.tokens)
    first = scorer.predict(pairs)
    # States of order 1 rounded by 2^-9 (bfloat16) or half of 1/127 of the largest: logits move by a few times that,
    # probabilities by a quarter of it. What is not rounded differs by float32 alone.
    np.testing.assert_allclose(first, exact, atol=atol + 1e-6)
    again = load(folder, monkeypatch, "split")
    stored = again.store_items(place, dtype)
    assert stored.computed == 0
    np.testing.assert_array_equal(again.predict(pairs), first)

    items = pq.read_table("data/shop/items.parquet")
    rows = items.to_pylist()[::-1][1:]  # another order, one gone, one changed, one new
    rows[7] |= {"title": "another thing"}
    rows.append(rows[0] | {"item_id": "new", "title": "a new thing"})
    pq.write_table(items.from_pylist(rows, items.schema), tmp_path / "items.parquet")
    config = again.config
    catalogue = replace(config.data.catalogues[0], files=str(tmp_path / "items.parquet"))
    other = Scorer.load("runs/split", config=replace(config, data=replace(config.data, catalogues=(catalogue,))))
    made = other.store_items(place, dtype)
    assert made.computed == 2
    states = np.asarray(made.states)
    other.store_items(dtype=dtype)
    # Computed in other batches: to float32, or to a step of the rounding where it falls the other way.
    np.testing.assert_allclose(states, np.asarray(other.stored.states), atol=atol * 4 + 1e-5)


def test_states_of_another_model_are_refused(folder, monkeypatch, tmp_path):
    load(folder, monkeypatch, "split").store_items(tmp_path / "states")
    with pytest.raises(InputError, match=r"found item states of model .* another checkpoint computed them"):
        load(folder, monkeypatch, "last").store_items(tmp_path / "states")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(InputError, match=r"no states.json"):
        load(folder, monkeypatch, "split").store_items(tmp_path / "other")
    with pytest.raises(InputError, match="dtype: found 'int4'"):
        load(folder, monkeypatch, "split").store_items(dtype="int4")


def test_states_of_8_bit_weights_are_kept_apart(folder, monkeypatch, log, tmp_path):
    """Stored items of 8-bit weights give their scores, are read again, and are not those of float32 weights."""
    monkeypatch.chdir(folder)
    small, pairs = Scorer.load("runs/split", quantize="int8"), split_pairs(log[:100])
    before = small.predict(pairs)
    assert 1e-6 < np.abs(before - load(folder, monkeypatch, "split").predict(pairs)).max() < 0.02
    assert small.store_items().computed == len(small.encoder.items.tokens)
    np.testing.assert_allclose(small.predict(pairs), before, rtol=0, atol=A_STEP)
    small.store_items(tmp_path / "states")
    first = small.predict(pairs)
    again = Scorer.load("runs/split", quantize="int8")
    assert again.store_items(tmp_path / "states").computed == 0
    np.testing.assert_array_equal(again.predict(pairs), first)
    with pytest.raises(InputError, match="found item states of model"):
        load(folder, monkeypatch, "split").store_items(tmp_path / "states")


def test_a_model_without_item_states_says_so(folder, monkeypatch):
    scorer = load(folder, monkeypatch, "shared")
    assert not scorer.can_store_items
    with pytest.raises(InputError, match="only 'split' with a catalogue"):
        scorer.store_items()


def test_the_command_scores_alike_with_and_without_stored_items(folder, command):
    for store in (True, False):
        options = ("--output", f"scores-{store}", "--store_items", store)
        done = command("score", "--run", "runs/split", "--input", "data/shop/log-0.parquet", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert ("400 items stored" in done.stdout) == store
    with_store, without = (
        ds.dataset(folder / f"scores-{store}").to_table()["score"].to_numpy() for store in (True, False)
    )
    np.testing.assert_allclose(with_store, without, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_command_scores_with_8_bit_weights(folder, command):
    """With stored items or not, with the weights made 8-bit now or by `compress`, scores are the same."""
    done = command("compress", "--run", "runs/split", "--output", "small", "--bound", 1e9, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = {}
    for name, options in {
        "now": ("--run", "runs/split", "--quantize", "int8"),
        "whole": ("--run", "runs/split", "--quantize", "int8", "--store_items", False),
        "before": ("--run", "small"),
    }.items():
        options = (*options, "--input", "data/shop/log-0.parquet", "--output", f"int8-{name}")
        done = command("score", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        found[name] = ds.dataset(folder / f"int8-{name}").to_table()["score"].to_numpy()
    np.testing.assert_allclose(found["whole"], found["now"], rtol=0, atol=A_STEP)
    np.testing.assert_allclose(found["before"], found["now"], rtol=0, atol=A_STEP)


def test_other_interactions_are_exported_as_the_bare_encoder(folder, command):
    done = command("export", "--run", "runs/split", "--output", "exported", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "exported/config.json").read_text())["architectures"] == ["BertModel"]
