"""A run of a flat log, grouped into requests, with two tasks: scored by the command and from Python."""

from __future__ import annotations

import csv
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.dataset as ds
import pytest
from compilations import compilations

from srsjax.config import Data, Mesh, Schema, Table, Text, Tokenizer, TrainConfig
from srsjax.data.preparing.prepare import prepare
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.runs.evaluation import split_references

CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(context=(Text("query"),), candidate=(Text("title"),), tasks=(Task("click"), Task("buy"))),
        data=Data(log=Table("log.csv"), group_by="request_id", user="user_id", split=Split(column="request_id")),
        tokenizer=Tokenizer(vocab_size=100),
        model=Model(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2),
        batch=Batch(rows=32, tokens=96),
        max_steps=3,
    )
"""
WORDS = ("red", "blue", "coat", "hat", "wool", "silk")


def make_log(rows: int) -> dict[str, list]:
    rng = np.random.default_rng(0)
    request, item = np.arange(rows) // 4, rng.integers(0, 12, rows)
    click = rng.random(rows) < np.where(item < 6, 0.7, 0.1)
    return {
        "request_id": [f"r{number}" for number in request],
        "user_id": [f"u{number % 9}" for number in request],
        "item_id": [f"i{number}" for number in item],
        "query": [f"{WORDS[number % 6]} {WORDS[number % 5]}" for number in request],
        "title": [f"{WORDS[number % 6]} {WORDS[number // 6]} {WORDS[number // 2]}" for number in item],
        "click": click.astype(int).tolist(),
        "buy": (click & (rng.random(rows) < 0.5)).astype(int).tolist(),
    }


def write_csv(path, log: dict[str, list]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([log.keys(), *zip(*log.values(), strict=True)])


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_csv(folder / "log.csv", make_log(800))
    (folder / "pairs.py").write_text(CONFIG)
    done = command("train", "--config", "pairs.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "train.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Scorer.load("runs/pairs", mesh=Mesh(8))


def read(folder, name):
    return ds.dataset(folder / name).to_table()


def score(command, folder, log, name, *arguments):
    write_csv(folder / f"{name}.csv", log)
    return command("score", "--run", "runs/pairs", "--input", f"{name}.csv", "--output", name, *arguments, cwd=folder)


def test_scores_can_be_joined_to_the_rows_they_belong_to(folder, scorer, command):
    log = make_log(60)
    log["note"] = [f"n{row}" for row in range(60)]  # nothing reads it
    done = score(command, folder, log, "all")
    assert done.returncode == 0, done.stderr
    scores = read(folder, "all")
    copied = ["request_id", "user_id", "item_id", "click", "buy", "note"]
    assert scores.column_names == ["row", *copied, "score", "score_buy"]
    assert scores["row"].to_pylist() == list(range(60)) and str(scores["row"].type) == "int64"
    for name in copied:
        assert scores[name].to_pylist() == [str(value) for value in log[name]]
    pairs = list(zip(log["query"], log["title"], strict=True))
    both = np.stack([scores["score"].to_numpy(), scores["score_buy"].to_numpy()], axis=1)
    np.testing.assert_allclose(scorer.predict(pairs), both, atol=1e-5)  # tasks in the order of the schema


def test_keys_choose_the_columns_and_a_clash_of_names_is_refused(folder, command):
    log = make_log(8) | {"score": list(range(8))}
    done = score(command, folder, log, "clash")
    assert done.returncode == 2 and "clash.csv: column 'score' has the name of a column of scores" in done.stderr
    done = score(command, folder, {name: log[name] for name in log if name != "score"} | {"row": range(8)}, "clash")
    assert done.returncode == 2 and "column 'row'" in done.stderr and not (folder / "clash").exists()
    done = score(command, folder, log, "chosen", "--data.keys", "item_id")
    assert done.returncode == 0, done.stderr
    assert read(folder, "chosen").column_names == ["item_id", "score", "score_buy"]


def test_pairs_alone_are_scored(folder, scorer, command):
    """A run of grouped requests with users and labels asks for none of them in what it scores."""
    log = {name: make_log(8)[name] for name in ("query", "title")}
    done = score(command, folder, log, "alone")
    assert done.returncode == 0, done.stderr
    scores = read(folder, "alone")
    assert scores.column_names == ["row", "score", "score_buy"] and len(scores) == 8
    done = score(command, folder, log, "named", "--data.keys", "request_id")
    assert done.returncode == 2 and "no column 'request_id'" in done.stderr
    pairs = [({"query": query}, {"title": title}) for query, title in zip(*log.values(), strict=True)]
    np.testing.assert_allclose(scorer.predict(pairs)[:, 0], scores["score"].to_numpy(), atol=1e-5)


def test_a_misspelt_column_is_told_its_name(folder, command, scorer):
    log = make_log(8)
    spelt = {{"query": "qery"}.get(name, name): values for name, values in log.items()}
    done = score(command, folder, spelt, "spelt")
    assert done.returncode == 2 and "no column 'query'; for 'qery', did you mean 'query'?" in done.stderr
    with pytest.raises(InputError, match=r"for 'qery', did you mean 'query'\?"):
        scorer.predict(({"qery": "red"}, "coat"))
    with pytest.raises(InputError) as error:
        scorer.predict(({"query": "red"}, {"click": "coat"}))
    assert str(error.value) == "candidate values: no column 'title', found 'click'"


def test_rank_takes_a_task(scorer):
    titles = make_log(40)["title"]
    both = scorer.predict([("red coat", title) for title in titles])
    for task, column in (("", 0), ("click", 0), ("buy", 1)):
        ranked = scorer.rank("red coat", titles, top_k=5, task=task)
        assert [entry["corpus_id"] for entry in ranked] == np.argsort(-both[:, column], kind="stable")[:5].tolist()
    with pytest.raises(InputError, match=r"task: found 'by', expected one of click, buy; did you mean 'buy'\?"):
        scorer.rank("red coat", titles, task="by")


@pytest.mark.parametrize("top_k", [-1, 0])
def test_rank_refuses_a_top_k_below_1(scorer, top_k):
    with pytest.raises(InputError, match=f"top_k: found {top_k}, expected at least 1"):
        scorer.rank("red", ["coat"], top_k=top_k)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scorer: scorer.rank("red", ["coat", None]), "candidate values: found None as number 2"),
        (lambda scorer: scorer.rank(None, ["coat"]), "context: found None"),
        (lambda scorer: scorer.predict(("red", None)), "candidate values: found None as number 1"),
        (lambda scorer: scorer.predict([(None, "coat")]), "context values: found None as number 1"),
        (lambda scorer: scorer.predict([("red", "coat"), ("red", 7)]), "candidate values: found 7 as number 2"),
        (lambda scorer: scorer.predict(["red", "coat", "hat"]), "pairs: found 'red' as number 1, expected a pair"),
        (lambda scorer: scorer.predict([("red", "coat"), None]), "pairs: found None as number 2"),
    ],
)
def test_what_is_no_text_is_refused(scorer, call, message):
    with pytest.raises(InputError) as error:
        call(scorer)
    assert message in str(error.value)


def test_a_missing_value_of_a_mapping_is_scored(scorer):
    missing = scorer.predict(({"query": "red"}, {"title": None}))
    np.testing.assert_allclose(missing, scorer.predict(("red", "")), atol=1e-6)


def test_no_request_compiles_after_warm_up(folder, monkeypatch):
    monkeypatch.chdir(folder)
    said: list[str] = []
    fresh = Scorer.load("runs/pairs", mesh=Mesh(8))
    with compilations() as compiled:
        sizes = fresh.warm_up(said.append)
    assert sizes == [(8, 32), (8, 48), (8, 96), (16, 96), (24, 96), (32, 96)]
    assert said == ["compiling for 8 x 32, 8 x 48, 8 x 96, 16 x 96, 24 x 96, 32 x 96 tokens"]
    assert len(compiled) >= len(sizes)
    titles = make_log(500)["title"]
    with compilations() as compiled:
        for count in (1, 2, 5, 20, 100, 500):
            assert len(fresh.predict([("red coat", title) for title in titles[:count]])) == count
            fresh.rank("red coat", titles[:count])
    assert compiled == []


def random_requests(count: int):
    """Queries and lists of 1, 10, 100 and 500 titles, all of random lengths, also above the budget of 32 tokens."""
    rng = np.random.default_rng(count)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(0, most)))

    sizes = [1, 10, 100, 500, *rng.integers(1, 500, 3).tolist()]
    return [text(40) for _ in sizes], [[text(40) for _ in range(size)] for size in sizes]


def test_random_requests_compile_nothing_after_warm_up(folder, monkeypatch):
    monkeypatch.chdir(folder)
    fresh = Scorer.load("runs/pairs", mesh=Mesh(2, 2, 2))
    print("rows", fresh.warm_up())
    queries, titles = random_requests(1)
    with compilations() as compiled:
        for query, own in zip(queries, titles, strict=True):
            fresh.rank(query, own)
        fresh.rank_many(queries, titles)
        fresh.predict(list(zip(queries, [own[0] for own in titles], strict=True)), batch_size=2)
    assert compiled == []


def test_ranking_many_is_ranking_each(scorer):
    queries, titles = random_requests(2)
    titles[2] = []
    options = {"top_k": 7, "return_documents": True, "task": {"click": 1.0, "buy": 2.0}}
    for own, context, given in zip(scorer.rank_many(queries, titles, **options), queries, titles, strict=True):
        alone = scorer.rank(context, given, **options)
        # Scores up to 3 in float32, from logits that differ by which pairs stand in a matrix product together.
        np.testing.assert_allclose([e["score"] for e in own], [e["score"] for e in alone], atol=1e-5)
        assert all(entry["text"] == given[entry["corpus_id"]] for entry in own)
    assert [len(own) for own in scorer.rank_many(queries, titles[1])] == [10] * len(queries)  # one list for all
    assert scorer.rank_many(["red"], [[]]) == [[]] and scorer.rank_many([], []) == []


def test_logits_are_returned_where_asked_for(scorer):
    pairs = [("red coat", title) for title in make_log(12)["title"]]
    logits, scores = scorer.predict(pairs, logits=True), scorer.predict(pairs)
    assert logits.shape == scores.shape == (12, 2)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)
    np.testing.assert_array_equal(scorer.predict(pairs, task="buy", logits=True), logits[:, 1])
    ranked = scorer.rank("red coat", [title for _, title in pairs], task="buy", logits=True)
    found = {entry["corpus_id"]: entry["score"] for entry in ranked}
    np.testing.assert_allclose([found[i] for i in range(12)], logits[:, 1], atol=1e-5)
    assert isinstance(scorer.predict(pairs[0], task="buy", logits=True), float)


def test_one_context_is_no_list_of_them(scorer):
    with pytest.raises(InputError, match="contexts: found 'red', expected a list"):
        scorer.rank_many("red", ["coat"])


@pytest.mark.parametrize("candidates", [[["coat"]], [["coat"], None], ["coat", ["hat"]]])
def test_lists_that_do_not_fit_the_contexts_are_refused(scorer, candidates):
    with pytest.raises(InputError, match="candidates: found"):
        scorer.rank_many(["red", "blue"], candidates)


def test_threads_get_what_they_would_get_alone(scorer):
    queries, titles = random_requests(3)
    queries, titles = queries * 4, titles * 4

    def request(number: int):
        ranked = scorer.rank(queries[number], titles[number])
        return ranked, scorer.predict([(queries[number], title) for title in titles[number][:9]])

    alone = [request(number) for number in range(len(queries))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(request, range(len(queries))))
    for (ranked, scores), (other, others) in zip(alone, together, strict=True):
        assert ranked == other  # the same batches of the same programs: bit for bit
        np.testing.assert_array_equal(scores, others)


def test_a_flat_log_is_compared_with_item_and_user_rates(folder, command):
    """Items recur by their text, users by their name: both rates stand beside the model's AUC."""
    report = json.loads((folder / "runs/pairs/report.json").read_text())
    assert set(report["test_references"]) == set(report["valid_references"]) == {"popularity", "user_item"}
    assert report["test_references"]["popularity"]["auc"] > 0.6  # half of the items are clicked seven times as often
    printed = (folder / "train.txt").read_text()
    assert "popularity" in printed and "item x user" in printed and "left out" not in printed
    done = command("evaluate", "--run", "runs/pairs", "--split", "test", "--output", "again.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    again = json.loads((folder / "again.json").read_text())
    references = {name: again[name] for name in report["test_references"]}
    assert again["model"] == report["test"] and references == report["test_references"]


def test_rates_that_say_nothing_are_left_out_with_the_reason(folder):
    log = make_log(400)
    log["title"] = [f"{title} {row}" for row, title in enumerate(log["title"])]
    log["user_id"] = log["request_id"]
    write_csv(folder / "once.csv", log)
    data = Data(log=Table(str(folder / "once.csv")), user="user_id", store=str(folder / "once"))
    schema = Schema(context=(Text("query"),), candidate=(Text("title"),))
    config = TrainConfig(schema=schema, data=data, tokenizer=Tokenizer(vocab_size=100))
    store, said = prepare(config, log=lambda line: None), []
    splits = store.split("train"), store.split("test")
    assert split_references(config, *splits, store.items, said.append) == {}
    assert len(said) == 1 and re.fullmatch(r"item popularity is left out: \d% of the weight is on items .*", said[0])
