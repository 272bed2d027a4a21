"""`export` as a user runs it: the Python of the card, run as printed in the folder, against the scores of the run."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from srsjax.config import Mesh
from srsjax.inference.scorer import Scorer

TOWERS = ("--model.interaction", "towers", "--model.readout", "mean")


RETRIEVAL = ("--schema.tasks.0.kind", "contrastive")


@pytest.fixture(scope="module", params=["cross", "towers", "retrieval"])
def exported(request, trained, small, command):
    """Folder of an exported run, and its scorer."""
    run = "runs/ctr"
    if request.param != "cross":
        run, more = f"runs/{request.param}", RETRIEVAL if request.param == "retrieval" else ()
        options = (*small, *TOWERS, *more, "--run_dir", run, "--max_steps", 20)
        done = command("train", "--config", "ctr.py", *options, cwd=trained)
        assert done.returncode == 0, done.stderr
    done = command("export", "--run", run, "--output", f"exported-{request.param}", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert not list(trained.glob(".exported*"))
    with contextlib.chdir(trained):
        return trained / f"exported-{request.param}", Scorer.load(run, mesh=Mesh(8))


def test_the_code_of_the_card_gives_the_scores_of_the_run(exported, trained, command):
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[reference]'")
    folder, scorer = exported
    program = re.search(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert scorer.config.schema.tasks[0].kind == "contrastive" or 0 < eval(done.stdout)["click"] < 1

    names: dict = {}
    with contextlib.chdir(folder):
        exec(compile(program, "README.md", "exec"), names)
    items = {row["item_id"]: row for row in pq.read_table(trained / "data/shop/items.parquet").to_pylist()}
    log = ds.dataset(sorted((trained / "data/shop").glob("log-*.parquet"))).to_table()
    rows = sorted(log.to_pylist(), key=lambda row: -len(row["history"]))[:20] + log.slice(0, 20).to_pylist()
    assert len(rows[0]["history"]) > 1
    rows.append(rows[0] | {"history": []})
    pairs = [({"query": row["query"], "history": row["history"]}, {"item_id": row["item_id"]}) for row in rows]
    texts = [
        (
            {"query": row["query"], "history": [(items[key]["title"],) for key in row["history"]]},
            {name: items[row["item_id"]][name] for name in ("title", "description")},
        )
        for row in rows
    ]
    found = [names["score"](*pair)["click"] for pair in texts]
    # float32 forward passes of two libraries; logits of retrieval are 20 times a cosine
    np.testing.assert_allclose(found, scorer.predict(pairs), atol=2e-4 if np.max(found) > 1 else 1e-5)
    assert np.ptp(found) > 1e-3


def test_a_program_gives_the_scores_of_the_run(trained, command):
    pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install -e '.[stablehlo]'")
    done = command("export", "--run", "runs/ctr", "--output", "program", "--format", "stablehlo", cwd=trained)
    assert done.returncode == 0, done.stderr
    folder = trained / "program"
    program = re.search(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with contextlib.chdir(trained):
        scorer = Scorer.load("runs/ctr", mesh=Mesh(8))
    example = ({"query": "a query", "history": []}, {"title": "a title", "description": "a description"})
    names: dict = {}
    with contextlib.chdir(folder):
        exec(compile(program, "README.md", "exec"), names)
    # the same operations in float32 (the CPU that tests run on may have chosen bfloat16, which keeps 8 bits)
    atol = 1e-6 if scorer.session.compute.dtype == "float32" else 0.01
    np.testing.assert_allclose(names["score"]([example])["click"], [scorer.predict(example)], atol=atol)


def test_an_output_that_exists_is_left_alone(exported, trained, command):
    folder, _ = exported
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    done = command("export", "--run", "runs/ctr", "--output", folder, cwd=trained)
    assert done.returncode == 2 and "exists already" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before
