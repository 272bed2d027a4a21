"""`watch` on a trained run: planted drift is named with exit code 3, draws of the same shop raise no alarm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from srsjax.config import Shop
from srsjax.data.shop import write_shop
from srsjax.inference.scorer import Scorer
from srsjax.runs.reference import Reference
from srsjax.runs.run_folder import RunFolder
from srsjax.watch import Arguments, watch

PAGE, TRAINED, DRAWN, DRAWS = 8, 3000, 500, 10
CONFIG = """
from dataclasses import replace
from srsjax.cli import read_config
from srsjax.config import Categorical, Numeric, Shop, Table

def get_config():
    base = read_config("ctr")
    (items,) = base.data.catalogues
    more = (Categorical("brand", column="items.brand"), Numeric("price", column="items.price", missing="median"))
    context = (*base.schema.context, Numeric("hour", column="time", scale="cyclic"))
    data = replace(base.data, shop=Shop(), log=Table("trained.parquet"),
                   catalogues=(replace(items, files="shop/items.parquet"),))
    schema = replace(base.schema, context=context, candidate=(*base.schema.candidate, *more))
    return replace(base, schema=schema, data=data)
"""
SMALL = (
    *("--model.hidden_size", 32, "--model.intermediate_size", 64, "--model.num_layers", 1),
    *("--batch.rows", 8, "--evaluate.every", 200, "--log_every", 200, "--max_steps", 600),
)


@pytest.fixture(scope="module")
def shop(command, tmp_path_factory) -> Path:
    """A folder with a run trained on the first pages of a shop, and draws of its later pages."""
    folder = tmp_path_factory.mktemp("watched")
    paths = write_shop(Shop(str(folder / "shop"), impressions=TRAINED + DRAWS * DRAWN, items=400, users=300))
    log = pa.concat_tables([pq.read_table(path) for path in sorted(paths["log"].parent.glob(paths["log"].name))])
    pq.write_table(log.slice(0, TRAINED * PAGE), folder / "trained.parquet")
    pages = np.random.default_rng(0).permutation(DRAWS * DRAWN).reshape(DRAWS, DRAWN) + TRAINED
    for number, own in enumerate(np.sort(pages)):
        rows = (own[:, None] * PAGE + np.arange(PAGE)).ravel()
        pq.write_table(log.take(pa.array(rows)), folder / f"draw-{number}.parquet")
    (folder / "watched.py").write_text(CONFIG)
    done = command("train", "--config", "watched.py", "--run_dir", "run", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def watched(shop, command, tmp_path):
    """`watched(table, *arguments)`: exit code, the report and what was printed, of a table of new rows."""

    def run(table: pa.Table, *arguments):
        pq.write_table(table, tmp_path / "new.parquet")
        output = tmp_path / "made" / "watch.json"
        given = ("--run", "run", "--input", tmp_path / "new.parquet", "--output", output, *arguments)
        done = command("watch", *given, cwd=shop)
        assert done.returncode in (0, 3), done.stderr
        return done.returncode, json.loads(output.read_text()), done.stdout

    return run


def put(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def test_ten_draws_of_the_same_shop_raise_no_alarm(shop, monkeypatch):
    """A false alarm has a probability of 0.001 at most in each."""
    monkeypatch.chdir(shop)
    config, known = RunFolder("run").config(), Reference.load(RunFolder("run"))
    scorer = Scorer.load("run", config=config, unknown="missing")
    for number in range(DRAWS):
        found, seen = watch(scorer, config, known, Arguments("run", f"draw-{number}.parquet"))
        assert [each.name for each in found if each.drifted] == []
        assert seen["rows"] == DRAWN * PAGE and seen["impressions"] == DRAWN and seen["labels"]
        assert {"click calibration", "click slope", "click auc", "click score", "price", "brand"} <= {
            each.name for each in found
        }


def test_a_number_that_moved_is_named(shop, watched):
    draw = pq.read_table(shop / "draw-0.parquet")
    code, report, said = watched(put(draw, "time", np.asarray(draw["time"]) // 86400 * 86400 + 3600 * 9))
    assert code == 3 and report["drift"] == ["hour"] and "drift: hour" in said
    assert report["watched"]["hour"]["ks"]["adjusted"] < 0.001 and report["watched"]["hour"]["drift"]
    lines = [line for line in said.splitlines() if line.startswith("DRIFT")]
    assert len(lines) == 1 and lines[0].split("│")[1].strip() == "hour"
    # What must change can be left out.
    code, report, said = watched(draw, "--ignore", "hour")
    assert code == 0 and report["drift"] == [] and "hour" not in report["watched"] and "no drift" in said


def test_another_mix_of_items_is_named(shop, watched):
    draw, items = pq.read_table(shop / "draw-1.parquet"), pq.read_table(shop / "shop/items.parquet")
    own, rng = np.asarray(items["item_id"])[np.asarray(items["brand"]) == "Lumo"], np.random.default_rng(0)
    moved = np.where(rng.random(len(draw)) < 0.5, rng.choice(own, len(draw)), np.asarray(draw["item_id"]))
    code, report, _ = watched(put(draw, "item_id", moved))
    assert code == 3 and {"items", "brand"} <= set(report["drift"])
    assert not {"hour", "context words", "context tokens", "items new"} & set(report["drift"])
    assert "Lumo" in report["watched"]["brand"]["change"]


def test_another_click_model_is_named(shop, watched):
    draw = pq.read_table(shop / "draw-2.parquet")
    clicks = np.random.default_rng(0).permutation(np.asarray(draw["click"]))  # as many, of other items
    code, report, _ = watched(put(draw, "click", clicks))
    assert code == 3 and report["drift"] == ["click slope", "click auc"]
    fewer = np.asarray(draw["click"]) * (np.random.default_rng(1).random(len(draw)) < 0.6)
    code, report, _ = watched(put(draw, "click", fewer.astype(np.int8)))
    assert code == 3 and report["drift"] == ["click calibration"]


def test_unknown_words_and_items_are_named_and_labels_not_needed(shop, watched):
    draw, rng = pq.read_table(shop / "draw-3.parquet"), np.random.default_rng(0)
    new = draw.drop_columns(["click", "click_probability"])
    code, report, said = watched(new)
    assert code == 0 and not report["labels"] and "no column click, click_probability" in said
    assert not any(name in report["watched"] for name in ("click calibration", "click slope", "click auc"))
    queries = np.repeat(np.where(rng.random(DRAWN) < 0.3, "zyx ✈ 飞机", np.asarray(new["query"])[::PAGE]), PAGE)
    _, report, _ = watched(put(new, "query", queries))
    assert "context words unknown" in report["drift"]
    ids = np.where(rng.random(len(draw)) < 0.1, "nobody", np.asarray(draw["item_id"]))
    code, report, _ = watched(put(new, "item_id", ids))
    assert code == 3 and {"items not in the catalogue", "items new"} <= set(report["drift"])


def test_what_is_given_by_the_input_itself_is_new_and_not_unknown(shop, watched):
    """As `score` does: a new item is read from the input's own columns."""
    draw, items = pq.read_table(shop / "draw-4.parquet"), pq.read_table(shop / "shop/items.parquet")
    place = pc.index_in(draw["item_id"], items["item_id"])
    for name in ("title", "description", "brand", "price"):
        draw = draw.append_column(name, items[name].take(place))
    changed = np.random.default_rng(0).random(len(draw)) < 0.1
    ids, titles = np.asarray(draw["item_id"]).astype(object), np.asarray(draw["title"]).astype(object)
    ids[changed], titles[changed] = (
        [f"x{n}" for n in np.flatnonzero(changed)],
        [f"{title} {title}" for title in titles[changed]],
    )
    _, report, _ = watched(put(put(draw, "item_id", ids), "title", titles))
    assert "items new" in report["drift"] and "items not in the catalogue" not in report["drift"]


def test_rows_that_cannot_be_read_are_drift(shop, watched):
    draw = pq.read_table(shop / "draw-5.parquet")
    click = np.asarray(draw["click"]).astype(np.int8)
    click[::4] = 7
    code, report, said = watched(put(draw, "click", click))
    assert code == 3 and "rows that cannot be read" in report["drift"]
    assert "1,000 rows cannot be read and are left out, the first: " in said and "row 1, column click" in said


def test_wrong_input_is_one_line_and_exit_code_2(shop, command, tmp_path):
    def refused(*arguments, run="run"):
        done = command("watch", "--run", run, *arguments, cwd=shop)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(shop / "draw-0.parquet").slice(0, 80), few)
    assert "expected at least 30 to tell drift from chance" in refused("--input", few)
    assert "did you mean 'price'?" in refused("--input", few, "--ignore", "prise")
    pq.write_table(pq.read_table(few).drop_columns("query"), few)
    assert "no column 'query'" in refused("--input", few)
    copy = tmp_path / "run"
    shutil.copytree(shop / "run", copy)
    reference = copy / "reference.json"
    reference.write_text(reference.read_text().replace('"rows": ', '"rows": 1', 1))
    assert "reference.json: damaged" in refused("--input", "draw-0.parquet", run=copy)
    reference.unlink()
    assert "no reference.json; runs of earlier versions" in refused("--input", "draw-0.parquet", run=copy)
    assert "3 something did, and is named" in command("watch", "--help").stdout


def test_the_reference_is_small_and_has_no_users(shop):
    text = (shop / "run" / "reference.json").read_text()
    assert len(text) < 100_000
    users = set(pq.read_table(shop / "trained.parquet")["user_id"].to_pylist())
    assert not any(user in text for user in users)
