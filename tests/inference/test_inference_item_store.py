"""Stored items: scores by look-up are the scores of the whole model, for whatever devices and requests."""

import json

import numpy as np
import pyarrow as pa
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


def test_new_items_are_scored_by_their_own_text_or_as_missing(folder, command, monkeypatch, log):
    """Whatever the input brings, every row has a score; rows of known items keep theirs, stored or not."""
    table = ds.dataset(folder / "data/shop/log-0.parquet").to_table().slice(0, 40)
    items = {row["item_id"]: row for row in pq.read_table(folder / "data/shop/items.parquet").to_pylist()}
    keys = [f"new-{row}" if row % 4 == 0 else key for row, key in enumerate(table["item_id"].to_pylist())]
    table = table.set_column(table.column_names.index("item_id"), "item_id", pa.array(keys))
    pq.write_table(table, folder / "bare.parquet")
    for name in ("title", "description"):
        own = [items[key][name] if key in items else f"new {name} {row}" for row, key in enumerate(keys)]
        table = table.append_column(name, pa.array(own))
    pq.write_table(table, folder / "own.parquet")

    found = {}
    for name, store in (("bare", True), ("own", True), ("own", False)):
        options = ("--output", f"new-{name}-{store}", "--store_items", store)
        done = command("score", "--run", "runs/split", "--input", f"{name}.parquet", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        read = "missing; to have them read, give the input the columns title, description"
        read = read if name == "bare" else "their own columns say"
        assert f"rows whose key is not in catalogue 'items': 10, scored as {read}\n" in done.stdout
        scores = ds.dataset(folder / f"new-{name}-{store}").to_table()
        assert not {"query", "title", "description"} & set(scores.column_names)
        assert scores["item_id"].to_pylist() == keys and scores["row"].to_pylist() == list(range(40))
        found[name, store] = scores["score"].to_numpy()
    np.testing.assert_allclose(found["own", True], found["own", False], rtol=0, atol=1e-6)
    new = np.array([key not in items for key in keys])
    np.testing.assert_allclose(found["bare", True][~new], found["own", True][~new], rtol=0, atol=1e-6)
    assert (np.abs(found["bare", True] - found["own", True])[new] > 1e-6).all()

    scorer = load(folder, monkeypatch, "split")  # and from Python the same, one by one or together
    rows = table.to_pylist()
    contexts = [{"query": row["query"], "history": row["history"]} for row in rows]
    own = [{"item_id": row["item_id"]} for row in rows]
    np.testing.assert_allclose(
        scorer.predict(list(zip(contexts, own, strict=True))), found["bare", True], rtol=0, atol=1e-5
    )
    assert scorer.unknown == {"items": 10}
    for row in range(0, 40, 4):
        own[row] |= {name: rows[row][name] for name in ("title", "description")}
    np.testing.assert_allclose(
        scorer.predict(list(zip(contexts, own, strict=True))), found["own", True], rtol=0, atol=1e-5
    )
    assert scorer.unknown == {"items": 10}


def test_what_to_do_with_unknown_items_is_not_asked_where_it_has_no_effect(folder, command):
    options = ("--input", "data/shop/log-0.parquet", "--data.catalogues.0.unknown", "drop")
    done = command("score", "--run", "runs/split", *options, cwd=folder)
    assert done.returncode == 2 and "--data.catalogues.0.unknown: fixed by the run" in done.stderr


def test_no_request_compiles_after_warm_up_with_stored_items(folder, monkeypatch, log):
    scorer = load(folder, monkeypatch, "split", Mesh(8))
    scorer.store_items()
    said: list[str] = []
    assert scorer.warm_up(said.append) == [8]
    assert said == ["compiled for 8 rows x 160 tokens, and 8 times that with stored items"]
    pairs, new = split_pairs(log[:300]), {"title": "a coat", "description": "red"}
    with compilations() as compiled:
        scorer.predict(pairs)
        for count in (1, 100, 500):
            scorer.rank(pairs[0][0], [pair[1] for pair in pairs * 2][:count])
        scorer.rank(pairs[0][0], [pair[1] for pair in pairs[:50]] + [new])
    assert compiled == []


def test_other_interactions_are_exported_as_the_bare_encoder(folder, command):
    done = command("export", "--run", "runs/split", "--output", "exported", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "exported/config.json").read_text())["architectures"] == ["BertModel"]
