"""The configs whose data cannot be fetched by the tests, on small tables of the same columns: they train and score."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from srsjax import score

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    *(
        "--model.pretrained",
        "",
        "--tokenizer.vocab_size",
        "300",
        "--model.hidden_size",
        "16",
        "--model.num_layers",
        "1",
    ),
    *("--model.num_heads", "2", "--model.intermediate_size", "32", "--max_steps", "4", "--evaluate.every", "4"),
)


def write(name: str, *arguments: object, cwd: Path) -> None:
    """Runs a config file as its docstring says."""
    path = str(CONFIGS / f"{name}.py")
    done = subprocess.run([sys.executable, path, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def train(command, config: str, cwd: Path, *options: str) -> dict:
    done = command("train", "--config", config, *SMALL, *options, "--run_dir", "runs/it", cwd=cwd, SRSJAX_DATA=str(cwd))
    assert done.returncode == 0, done.stderr
    return json.loads((cwd / "runs/it/report.json").read_text())


def test_reply_joins_dialogues_newest_turn_first(command, tmp_path):
    folder, rng = tmp_path / "taskmaster4_coffee", np.random.default_rng(0)
    folder.mkdir()
    turns, responses, lists = [], [], []
    for d in range(60):
        split = "train" if d < 40 else "valid" if d < 50 else "test"
        for t in range(4):
            turns.append({"dialogue_id": f"d{d}", "turn": t, "role": ["user", "agent"][t % 2], "text": f"say {d} {t}"})
        for number, t in enumerate((1, 3)):
            example = {"example_id": 2 * d + number, "dialogue_id": f"d{d}", "turn": t}
            responses.append(example | {"response": f"say {d} {t}", "split": split})
            if split != "train":
                own, others = int(rng.integers(10)), [f"say {k} {t}" for k in rng.choice(40, 9)]
                candidates = [*others[:own], f"say {d} {t}", *others[own:]]
                lists.append(example | {"candidates": candidates, "positive_index": own, "split": split})
    for name, rows in (("turns", turns), ("responses", responses), ("eval_candidates", lists)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    write("reply", folder, cwd=tmp_path)
    rows = pq.read_table(folder / "replies.parquet").to_pylist()
    assert len(rows) == 80 + 40 * 10 and sum(row["next"] for row in rows) == 120
    assert rows[1]["dialogue"] == "user: say 0 2 | agent: say 0 1 | user: say 0 0"
    report = train(command, "reply", tmp_path)
    assert {"top_1", "mrr"} <= set(report["test"]) and report["test"]["candidates"] == 200


def test_demand_sums_sales_by_item_and_week(command, tmp_path):
    folder, rng = tmp_path / "online_retail", np.random.default_rng(0)
    folder.mkdir()
    n = 3000
    day = rng.integers(0, 140, n)
    sales = {
        "stock_code": [f"s{k}" for k in rng.integers(0, 20, n)],
        "invoice_date": pa.array(day * 86400 + 1_300_000_000, pa.timestamp("s")),
        "quantity": rng.integers(1, 9, n),
        "unit_price": rng.integers(1, 9, n) / 2,
        "is_cancellation": rng.random(n) < 0.02,
    }
    pq.write_table(pa.table(sales), folder / "interactions.parquet")
    write("demand", folder, cwd=tmp_path)
    rows = pq.read_table(folder / "weeks.parquet").to_pylist()
    module = runpy.run_path(str(CONFIGS / "demand.py"))
    first = 1_300_000_000 // module["WEEK"]
    row = rows[len(rows) // 2]
    week = row["time"] // module["WEEK"]

    def units(of_week: int) -> int:
        return sum(
            int(q)
            for code, d, q, gone in zip(
                sales["stock_code"], day, sales["quantity"], sales["is_cancellation"], strict=True
            )
            if code == row["stock_code"] and not gone and (int(d) * 86400 + 1_300_000_000) // module["WEEK"] == of_week
        )

    assert row["demand"] == pytest.approx(np.log1p(units(week))) and week >= first + module["BEFORE"]
    assert row["week_1"] == pytest.approx(np.log1p(units(week - 1)))
    assert row["week_4"] == pytest.approx(np.log1p(units(week - 4)))
    assert train(command, "demand", tmp_path)["test"]["rmse"] > 0


@pytest.mark.slow
def test_news_reads_impression_lists_and_what_was_read_before(command, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder in ("train", "dev"):
        (tmp_path / folder).mkdir()
        news = [f'N{k}\t{["sport", "money"][k % 2]}\tsub\tTitle of {k} "x\t\t\t\t' for k in range(30)]
        (tmp_path / folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8")
        lines = []
        for number in range(1, 61):
            read = " ".join(f"N{k}" for k in rng.choice(30, rng.integers(0, 4), replace=False))
            shown = " ".join(f"N{k}-{int(at == 0)}" for at, k in enumerate(rng.choice(30, 4, replace=False)))
            lines.append(
                f"{number}\tU{number % 9}\t11/{1 + number % 9}/2019 {1 + number % 12}:05:00 PM\t{read}\t{shown}"
            )
        (tmp_path / folder / "behaviors.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write("news", "train", "dev", cwd=tmp_path)
    report = train(command, "news", tmp_path, "--batch.tokens", "256", "--batch.rows", "4")
    assert report["test"]["impressions"] == 60 and report["test"]["candidates"] == 240
    done = command("score", "--run", "runs/it", "--input", "impressions.parquet", "--output", "scores", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    arguments = ("--run", "runs/it", "--input", "impressions.parquet", "--data.keys", "--part_rows", "17", "--output")
    assert score.main([*arguments, "lists"]) == 0
    before = {file.name: file.read_bytes() for file in Path("lists").iterdir()}
    rows = ds.dataset("lists").to_table()["row"].to_pylist()
    assert rows == list(range(len(rows))) and len(rows) > 240  # candidates are numbered, not lists
    for name in ("_SUCCESS", "part-00001.parquet", "part-00003.parquet"):
        Path("lists", name).unlink()
    assert score.main([*arguments, "lists"]) == 0
    assert {file.name: file.read_bytes() for file in Path("lists").iterdir()} == before


@pytest.mark.slow
def test_ctr_bert_base_reads_a_log_and_items_on_a_mesh(command, tmp_path):
    """On eight devices, four of which divide parameters; the position is not asked for at scoring."""
    rng = np.random.default_rng(0)
    for name in ("log", "items"):
        (tmp_path / name).mkdir()
    items = {"item_id": [f"i{k}" for k in range(30)], "title": [f"thing {k}" for k in range(30)]}
    items |= {"description": ["a good thing"] * 30, "brand": ["acme", "bolt"] * 15, "category": ["a", "b", "c"] * 10}
    items["price"] = [None if k % 7 == 0 else float(k + 1) for k in range(30)]
    pq.write_table(pa.table(items), tmp_path / "items/part-0.parquet")
    n = 800
    log = {
        "request_id": np.arange(n) // 4,
        "query": [f"thing {k // 4 % 30}" for k in range(n)],
        "user_id": [f"u{k // 4 % 40}" for k in range(n)],
        "item_id": [f"i{k}" for k in rng.integers(0, 30, n)],
        "position": np.arange(n) % 4 + 1,
        "time": np.arange(n) // 4,
        "click": rng.integers(0, 2, n),
    }
    pq.write_table(pa.table(log), tmp_path / "log/part-0.parquet")
    small = ("--schema.context.1.hash_buckets", "5000", "--schema.candidate.2.hash_buckets", "64", "--batch.rows", "16")
    options = (*small, "--batch.tokens", "256", "--batch.workers", "0", "--model.remat", "none")
    done = command(
        *("train", "--config", "ctr_bert_base", *SMALL, *options, "--run_dir", "runs/it"),
        cwd=tmp_path,
        SRSJAX_DATA=str(tmp_path),
        JAX_NUM_CPU_DEVICES="8",
    )
    assert done.returncode == 0, done.stderr
    pq.write_table(pa.table({k: v for k, v in log.items() if k != "position"}), tmp_path / "new.parquet")
    done = command(
        *("score", "--run", "runs/it", "--input", "new.parquet", "--output", "scores", "--mesh.fsdp", "1"),
        cwd=tmp_path,
        SRSJAX_DATA=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
