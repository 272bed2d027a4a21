"""Rows to score whose key is in no catalogue: every row is scored, by its own columns or as missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data_encode import LOG, USERS, make_config, quiet, words, write_tables

from srsjax.config import Categorical, Schema, Table, Text
from srsjax.data.preparing.catalogue import read_catalogues
from srsjax.data.preparing.encode import Encoder, load_encoder, refuse
from srsjax.data.preparing.fit import Fitted
from srsjax.data.preparing.new_items import for_scoring
from srsjax.data.preparing.prepare import prepare
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.tokenizer import train_tokenizer
from srsjax.errors import InputError

NEW = LOG | {"item_id": ["10", "99", "30", "98", "10"], "user": ["a", "b", "z", "y", "b"]}
OWN = {"title": ["red hat", "red coat", None, "a hat", "red hat"], "price": [9.0, 5.0, 9.0, None, 9.0]}
OWN |= {"brand": ["Tarn"] * 5, "vector": [[2.0, 3.0]] * 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    config = make_config(folder)
    return config, prepare(config, log=quiet)


@pytest.fixture(scope="module")
def encoder(trained):
    config, store = trained
    return load_encoder(for_scoring(config), store.folder)


def encode(encoder, folder, columns: dict):
    pq.write_table(pa.table(columns), folder / "new.parquet")
    (chunk,) = encoder.encode_files(Table(str(folder / "new.parquet")), labels=False)
    return chunk


def of_rows(chunk) -> dict[int, tuple]:
    """Context tokens, candidate tokens and the features of each row of the input."""
    found = {}
    for part in [chunk, *([chunk.new] if chunk.new else [])]:
        for row, example in enumerate(part.split.example.tolist()):
            item, impression = part.split.item[row], part.split.impression[row]
            features = {name: values[item].tolist() for name, values in part.items.features.items()}
            context = {name: values[impression].tolist() for name, values in part.split.context_features.items()}
            tokens = part.split.context[impression].tolist(), part.items.tokens[item].tolist()
            found[example] = (*tokens, features, context)
    return found


def test_the_config_of_scoring_has_the_encoder_of_training(trained, encoder):
    config, store = trained
    assert for_scoring(config).data.catalogues[0].unknown == "missing"
    for row in range(4):  # and one more, that of an unknown item
        assert encoder.items.tokens[row].tolist() == store.items.tokens[row].tolist()
    assert len(encoder.items.tokens) == 5


def test_unknown_keys_are_missing_where_the_row_brings_nothing(encoder, tmp_path):
    chunk = encode(encoder, tmp_path, NEW)
    assert chunk.new is None and chunk.unknown == {"items": 2, "users": 2}
    np.testing.assert_array_equal(chunk.split.item, [0, 4, 2, 4, 0])
    rows = of_rows(chunk)
    # Each feature's value for a missing one: a constant text, the median, the commonest brand, a constant vector.
    missing = {"price": 2.25, "brand": 1, "vector": [9.0, 9.0]}
    assert rows[1][1:3] == (words(encoder, "nothing"), missing)
    assert rows[2][0] == [] and rows[2][3] == {"city": 0, "hour": 3.0}  # an unknown user: no history, no city


def test_new_items_are_read_from_their_own_columns(encoder, tmp_path):
    chunk = encode(encoder, tmp_path, NEW | OWN)
    assert chunk.unknown == {"items": 2, "users": 2}
    assert chunk.split.example.tolist() == [0, 2, 4] and chunk.new.split.example.tolist() == [1, 3]
    assert chunk.items is encoder.items  # stored states of items serve these rows still
    rows, known = of_rows(chunk), of_rows(encode(encoder, tmp_path, LOG))
    assert rows[0][1:3] == known[0][1:3]  # the catalogue's title, not that of the row
    assert rows[1][1] == words(encoder, "red coat")[:3]
    assert rows[1][2] == {"price": 5.0, "brand": 2, "vector": [2.0, 3.0]}
    assert rows[3][2]["price"] == 2.25  # what is missing of it is filled
    assert [rows[row][0] for row in (0, 1, 4)] == [known[row][0] for row in (0, 1, 4)]


def test_some_of_the_columns_are_not_enough(encoder, tmp_path):
    chunk = encode(encoder, tmp_path, NEW | {"title": OWN["title"]})
    assert chunk.new is None and chunk.split.item[1] == 4


def test_all_rows_may_be_new_and_users_too(encoder, tmp_path):
    own = OWN | {"city": ["Bern"] * 5, "liked": [["10", "77"]] * 5}
    chunk = encode(encoder, tmp_path, LOG | own | {"item_id": ["x"] * 5, "user": ["a", "q", "q", "q", "q"]})
    rows = of_rows(chunk)
    assert chunk.new is None and sorted(rows) == [0, 1, 2, 3, 4] and chunk.unknown == {"items": 5, "users": 4}
    known = of_rows(encode(encoder, tmp_path, LOG))
    assert rows[0][0] == known[0][0]  # a known user's own history
    separator = encoder.text.template.separator
    assert rows[1][0] == [*words(encoder, "a hat")[:3], separator, *words(encoder, "red coat")[:3]][:9]  # no item 77
    assert rows[1][3] == {"city": 1, "hour": 2.0}


def test_candidates_of_one_exploded_row_share_their_new_user(tmp_path):
    users, log = dict(USERS), {"user": ["a", "q"], "query": ["coat", "hat"], "clicked": [[1, 0], [0, 1]]}
    log["shown"] = [[{"item_id": "10"}, {"item_id": "20"}], [{"item_id": "30"}, {"item_id": "88"}]]
    write_tables(tmp_path, users=users | {"user_id": ["a", "q", "c"]}, log=log)
    schema = Schema(
        context=(Text("query"), Categorical("city", column="users.city")),
        candidate=(Text("title", column="items.title"),),
    )
    items, people = make_config(tmp_path).data.catalogues
    catalogues = (replace(items, on="shown.item_id"), people)
    config = for_scoring(make_config(tmp_path, schema, explode=("shown", "clicked"), catalogues=catalogues))
    sources = Sources(config.schema, config.data)
    text = train_tokenizer(["red coat blue hat"], 100, True)
    encoder = Encoder(sources, read_catalogues(sources, refuse, False), text, Fitted(vocabularies={"city": ["Bern"]}))
    new = {"user": ["a", "r"], "query": ["coat", "hat"], "city": ["x", "Bern"]}
    new["shown"] = [[{"item_id": "10", "title": "red"}] * 2, [{"item_id": "30", "title": "red"}] * 2]
    new["shown"][1][1] = {"item_id": "88", "title": "blue"}
    chunk = encode(encoder, tmp_path, new)
    assert chunk.keys.schema.names == ["user", "city", "shown.item_id"]
    assert chunk.split.example.tolist() == [0, 1] and chunk.new.split.example.tolist() == [2, 3]
    assert len(chunk.new.split) == 1 and chunk.new.split.context_features["city"].tolist() == [1]
    assert [chunk.new.items.tokens[i].tolist() for i in chunk.new.split.item] == [
        [],  # item 30 has no title in the catalogue
        words(encoder, "blue"),
    ]


def test_values_are_looked_up_or_read_one_by_one(encoder):
    context = {"user": "a", "query": "coat", "hour": 1}
    own = {name: values[1] for name, values in OWN.items()}
    (known,) = [encoder.encode_values([context], [[{"item_id": 10}]])]
    mixed = encoder.encode_values([context], [[{"item_id": 10}, {"item_id": 99} | own, {"item_id": 98}, own]])
    assert mixed.unknown == {"items": 1, "users": 0}
    tokens = [mixed.items.tokens[item].tolist() for item in mixed.split.item]
    assert tokens[0] == known.items.tokens[known.split.item[0]].tolist()
    assert tokens[1] == tokens[3] == words(encoder, "red coat")[:3]
    assert tokens[2] == words(encoder, "nothing")
    for name, values in mixed.items.features.items():
        rows = values[mixed.split.item]
        np.testing.assert_array_equal(rows[0], known.items.features[name][known.split.item[0]])
        np.testing.assert_array_equal(rows[1], rows[3])
    with pytest.raises(InputError, match=r"candidate values: no column 'price', found 'title', 'prize'.*mean 'price'"):
        encoder.encode_values([context], [[{"title": "red", "prize": 1}]])


def test_a_misspelt_column_of_the_input_is_told_the_name_of_the_run(encoder, tmp_path):
    spelt = {{"query": "qery"}.get(name, name): values for name, values in LOG.items()}
    with pytest.raises(InputError, match=r"no column 'query'; for 'qery', did you mean 'query'\?"):
        encode(encoder, tmp_path, spelt)
    with pytest.raises(InputError, match=r"found 'user', 'qery', 'hour'; for 'qery', did you mean 'query'\?"):
        encoder.encode_values([{"user": "a", "qery": "coat", "hour": 1}], [[{"item_id": 10}]])
    with pytest.raises(InputError) as error:  # nothing is near
        encode(encoder, tmp_path, {name: values for name, values in LOG.items() if name != "hour"})
    assert "no column 'hour'; It has: user" in str(error.value)
