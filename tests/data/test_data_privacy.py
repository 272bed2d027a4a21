"""Ids of users kept as keyed hashes, and private columns that no message shows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from prepare_cases import SCHEMA, make_config, make_log, quiet, write_csv

from srsjax.config import Catalogue, Categorical, Numeric, Schema, Task, Text
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import prepare
from srsjax.data.reading import hashing
from srsjax.errors import InputError

SECRET = "correct horse battery staple"
WITH_USER = replace(SCHEMA, context=(Text("query"), Categorical("member", column="user", min_count=1)))


def log_of(rows: int = 200) -> dict[str, list]:
    log = make_log(rows)
    return log | {"user": [f"person-{user}@example.org" for user in log["user"]]}


def everything(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("IDS", SECRET)


def test_pseudonyms_are_keyed_blake2b():
    key = hashlib.blake2b(SECRET.encode()).digest()
    texts = pa.chunked_array([pa.array(["ü", None, "a"]), pa.array(["a", ""])])
    found = hashing.pseudonyms(texts, SECRET.encode()).to_pylist()
    expected = [
        t if t is None else hashlib.blake2b(t.encode(), digest_size=8, key=key).hexdigest()
        for t in ("ü", None, "a", "a", "")
    ]
    assert found == expected


def test_no_id_of_a_user_is_kept(tmp_path, secret):
    write_csv(tmp_path / "log.csv", log_of())
    plain = make_config(tmp_path, WITH_USER, user="user", store=str(tmp_path / "plain"))
    keyed = replace(plain, data=replace(plain.data, hash_key_env="IDS", store=str(tmp_path / "keyed")))
    store, other = prepare(keyed, log=quiet), prepare(plain, log=quiet)
    assert b"example.org" in everything(tmp_path / "plain") and b"example.org" not in everything(tmp_path / "keyed")
    assert SECRET.encode() not in everything(tmp_path / "keyed")
    users, unkeyed = store.split("train").user, other.split("train").user
    assert not np.isin(users, unkeyed).any()
    pairs = {*zip(users.tolist(), unkeyed.tolist(), strict=True)}  # one name for each, and the other way round
    assert len(pairs) == len({*users.tolist()}) == len({*unkeyed.tolist()})
    members = store.split("train").context_features["member"], other.split("train").context_features["member"]
    assert len({*zip(*(each.tolist() for each in members), strict=True)}) == len(np.unique(members[0])) > 5


def test_ids_are_found_again_with_the_same_secret_and_refused_with_another(tmp_path, secret, monkeypatch):
    write_csv(tmp_path / "log.csv", log_of())
    config = make_config(tmp_path, WITH_USER, user="user", hash_key_env="IDS")
    folder = prepare(config, log=quiet).folder

    def member(user: str) -> int:
        encoded = load_encoder(config, folder).encode_values([{"query": "red", "user": user}], [["coat"]])
        return int(encoded.split.context_features["member"][0])

    assert member("person-u3@example.org") > 0 and member("person-u8@example.org") == 0
    monkeypatch.setenv("IDS", SECRET + "!")
    with pytest.raises(InputError, match="made with another secret"):
        load_encoder(config, folder)
    with pytest.raises(InputError, match="made with a secret"):
        load_encoder(replace(config, data=replace(config.data, hash_key_env="")), folder)
    assert prepare(config, log=quiet).folder != folder  # another secret, another store


@pytest.mark.parametrize("value", ["", "short"])
def test_a_missing_or_short_secret_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("IDS", value)
    write_csv(tmp_path / "log.csv", log_of())
    with pytest.raises(InputError, match=f"found {len(value)} characters in the environment variable IDS"):
        prepare(make_config(tmp_path, WITH_USER, user="user", hash_key_env="IDS"), log=quiet)


def test_ids_in_a_catalogue_are_ids_too(tmp_path, secret):
    log = log_of()
    write_csv(tmp_path / "log.csv", log)
    people = sorted({*log["user"]})
    write_csv(tmp_path / "people.csv", {"id": people, "age": list(range(20, 20 + len(people)))})
    schema = Schema(
        context=(Text("query"), Categorical("person", column="people.id", min_count=1)),
        candidate=SCHEMA.candidate,
        tasks=SCHEMA.tasks,
    )
    catalogue = Catalogue(name="people", files=str(tmp_path / "people.csv"), key="id", on="user", side="context")
    config = make_config(tmp_path, schema, user="people.id", hash_key_env="IDS", catalogues=(catalogue,))
    prepare(config, log=quiet)
    assert b"example.org" not in everything(tmp_path / "stores")


@pytest.mark.parametrize("how", ["column", "feature", "user"])
def test_messages_and_bad_rows_do_not_show_private_values(tmp_path, secret, how):
    log = log_of(60)
    log["price"][3] = "four-score"
    schema = replace(SCHEMA, candidate=(Text("title"), Numeric("price", private=how != "user")))
    settings = {
        "column": {"private": ("price",)},
        "feature": {},
        "user": {"user": "price", "hash_key_env": "IDS"},
    }[how]
    write_csv(tmp_path / "log.csv", log)
    with pytest.raises(InputError, match="row 4, column price: found a private value, expected a number"):
        prepare(make_config(tmp_path, schema, **settings), log=quiet)
    store = prepare(make_config(tmp_path, schema, on_bad_row="skip", **settings), log=quiet)
    (line,) = (store.folder / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["found"] == "a private value"
    assert b"four-score" not in everything(tmp_path / "stores")


def test_a_private_column_that_is_not_there_or_read_openly_is_refused(tmp_path):
    write_csv(tmp_path / "log.csv", log_of())
    with pytest.raises(InputError, match=r"no column 'usr'.*'user'"):
        prepare(make_config(tmp_path, private=("usr",)), log=quiet)
    with pytest.raises(InputError, match="expected private=True"):
        prepare(make_config(tmp_path, private=("title",)), log=quiet)
    classes = replace(SCHEMA, tasks=(Task("part", kind="multiclass"),))
    with pytest.raises(InputError, match=r"data\.private: found 'part', the label column of task 'part'"):
        prepare(make_config(tmp_path, classes, private=("part",)), log=quiet)
    with pytest.raises(InputError, match=r"found no data\.user"):
        prepare(make_config(tmp_path, hash_key_env="IDS"), log=quiet)
