"""`export` as a user runs it: the Python of the card, run as printed in the folder, against the scores of the run."""

from __future__ import annotations

import contextlib
import io
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


LORA = ("--model.pretrained", "runs/ctr", "--model.adapter_rank", 4, "--optimizer.learning_rate", 1e-2)
RETRIEVAL = ("--schema.tasks.0.kind", "contrastive")


@pytest.fixture(scope="module", params=["cross", "towers", "retrieval", "lora"])
def exported(request, trained, small, command):
    """Folder of an exported run, and its scorer."""
    run = "runs/ctr"
    if request.param != "cross":
        run, more = f"runs/{request.param}", RETRIEVAL if request.param == "retrieval" else ()
        options = (*small, *(LORA if request.param == "lora" else TOWERS), *more, "--run_dir", run, "--max_steps", 20)
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


def test_the_card_of_the_run_loads_it_in_each_library_that_can(exported, trained, monkeypatch):
    """Each of its programs has three lines; those of other libraries give what the card of the export gives."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[reference]'")
    folder, scorer = exported
    run = folder.name.removeprefix("exported-")
    text = (trained / "runs" / {"cross": "ctr"}.get(run, run) / "README.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    libraries = [program.split()[1].partition(".")[0] for program in programs]
    towers = folder.name in ("exported-towers", "exported-retrieval")
    assert libraries == [
        "srsjax",
        *(["sentence_transformers"] if towers else ["transformers", "sentence_transformers"]),
    ]
    assert all(program.count("\n") == 3 for program in programs)
    monkeypatch.chdir(trained)
    example = ({"query": "a query", "history": []}, {"title": "a title", "description": "a description"})
    assert printed(programs[0]) == str(scorer.predict([example]))
    monkeypatch.chdir(folder)
    own = re.search(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(own, "README.md", "exec"), names)
    short = {"the title of the newest item": "red", "the title of an older item": "blue", "a query": "coat"}
    short |= {"a title": "wool", "a description": "warm", '"exported"': '"."'}  # this tokenizer knows few words
    history = [("red",), ("blue",)]
    expected = names["score"]({"query": "coat", "history": history}, {"title": "wool", "description": "warm"})["click"]
    for library, program in list(zip(libraries, programs, strict=True))[1:]:
        pytest.importorskip(library, reason=f"needs {library}: pip install -e '.[reference]'")
        for words, fewer in short.items():
            assert words in program
            program = program.replace(words, fewer)
        found = printed(program)
        if towers:  # a cosine
            assert -1 <= float(re.search(r"-?\d+\.\d+(e-\d+)?", found)[0]) <= 1
        else:
            assert float(re.search(r"0\.\d+", found)[0]) == pytest.approx(expected, abs=1e-4)


def printed(program: str) -> str:
    """What a program prints in the working folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "README.md", "exec"), {})
    return out.getvalue().strip()


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
