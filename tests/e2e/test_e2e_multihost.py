"""Several processes as one: the losses of one process, one writer, one end; and what a lost process does to the others.

Real processes on CPU that find each other on this machine and add their gradients with Gloo.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

STEPS = 120
FLAGS = ("--max_steps", STEPS, "--evaluate.every", 60, "--log_every", 1, "--checkpoints.every", 20)

# The same rows in the same order, the same arithmetic; only the sums over rows are taken in another order: float32
# rounding, some 1e-7 of a loss near 0.6 in the first step. AdamW divides gradients by their size, so that rounding
# moves parameters with next to no gradient too, by up to the learning rate of 1e-3.
# Other rows in one step give other losses by 1e-2.
TOLERANCE = 2e-5


GLOO = ("[Gloo] Rank ", " is connected to ", " peer ranks. ", "Expected number of connected peer ranks is : ")


class Processes:
    """One command in several processes; a context manager that leaves none behind."""

    def __init__(self, count: int, folder: Path, name: str, *arguments: object, devices: int = 1):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for_tests = ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
        inherited = {key: value for key, value in os.environ.items() if key not in for_tests}
        self.files, self.all = [], []
        for process in range(count):
            several = {
                "SRSJAX_COORDINATOR": f"localhost:{port}",
                "SRSJAX_NUM_PROCESSES": str(count),
                "SRSJAX_PROCESS_ID": str(process),
                "JAX_NUM_CPU_DEVICES": str(devices),
            }
            said, errors = (folder / f"{kind}-{port}-{process}.txt" for kind in ("said", "errors"))
            self.files.append((said, errors))
            with open(said, "w") as out, open(errors, "w") as err:
                command = [sys.executable, "-m", f"srsjax.{name}", *map(str, arguments)]
                self.all.append(
                    subprocess.Popen(
                        command, cwd=folder, env=inherited | several, stdin=subprocess.DEVNULL, stdout=out, stderr=err
                    )
                )

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_) -> None:
        for process in self.all:
            process.kill()
            process.wait()

    def wait(self, seconds: float = 300) -> list[int]:
        """Exit codes of all."""
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.all]

    def said(self, process: int) -> str:
        """Its standard output, without what Gloo prints: pieces, from threads of which one may be in another's line."""
        printed = re.sub("|".join(map(re.escape, GLOO)), "", self.files[process][0].read_text())
        return "\n".join(line for line in printed.splitlines() if line.strip(" 0123456789"))

    def errors(self, process: int) -> str:
        return self.files[process][1].read_text()

    def wait_for_step(self, run: Path, step: int) -> None:
        """Until the run has logged that step."""
        end = time.monotonic() + 300
        while time.monotonic() < end and all(process.poll() is None for process in self.all):
            lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
            if lines and json.loads(lines[-1])["step"] >= step:
                return
            time.sleep(0.02)
        raise AssertionError(f"step {step} never came: {[self.errors(process) for process in range(len(self.all))]}")


def run(*arguments, **options) -> Processes:
    """Runs processes to their good end."""
    with Processes(*arguments, **options) as processes:
        codes = processes.wait()
        assert set(codes) == {0}, (codes, [processes.errors(process) for process in range(len(codes))])
    return processes


@pytest.fixture(scope="module")
def train(trained, small):
    """`train(count, run, ...)`: the command in the folder where the shop is prepared, started."""

    def start(count: int, run: str, *more: object, devices: int = 1, how=Processes) -> Processes:
        arguments = ("--config", "ctr.py", *small, *FLAGS, "--run_dir", f"runs/{run}", *more)
        return how(count, trained, "train", *arguments, devices=devices)

    return start


@pytest.fixture(scope="module")
def one(train, trained) -> Path:
    """The run of a single process on a single device."""
    train(1, "alone", how=run)
    return trained / "runs/alone"


@pytest.fixture(scope="module")
def two(train, trained) -> tuple[Path, Processes]:
    """The run of two processes with two devices each, and what they said."""
    processes = train(2, "two", devices=2, how=run)
    return trained / "runs/two", processes


def assert_same_run(found: Path, expected: Path) -> None:
    """The same steps, each logged once, with the same losses and validations."""
    lines = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (found, expected)
    ]
    assert [(line["kind"], line["step"]) for line in lines[0]] == [(line["kind"], line["step"]) for line in lines[1]]
    losses = [[line.get("loss", line.get("log_loss")) for line in of] for of in lines]
    assert len(losses[0]) == STEPS + STEPS // 60
    np.testing.assert_allclose(*losses, rtol=0, atol=TOLERANCE)
    reports = [json.loads((path / "report.json").read_text()) for path in (found, expected)]
    assert reports[0]["test"]["log_loss"] == pytest.approx(reports[1]["test"]["log_loss"], abs=TOLERANCE)


def test_two_processes_give_the_losses_of_one(two, one):
    assert_same_run(two[0], one)


def test_four_processes_with_weights_divided_over_two_give_the_losses_of_one(train, trained, one):
    """`tensor` goes across processes, so that two of them read the same rows."""
    processes = train(4, "four", "--mesh.tensor", 2, how=run)
    assert "devices: 4 processes x 1 cpu" in processes.said(0) and "mesh: data 2, fsdp 1, tensor 2" in processes.said(0)
    assert_same_run(trained / "runs/four", one)


def test_only_the_first_process_writes_and_prints(two, one):
    run, processes = two
    assert "devices: 2 processes x 2 cpu" in processes.said(0) and "best checkpoint" in processes.said(0)
    assert processes.said(1) == "" and processes.errors(1) == ""
    assert {path.name for path in run.iterdir()} == {path.name for path in one.iterdir()}
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert "goodput" in processes.said(0) and (run / "goodput.jsonl").read_text().count('"start"') == 1


def test_the_training_step_compiles_once_on_each_process(two):
    said = two[1].said(0)
    for program in ("train_step", "predict_step"):
        assert said.count(f"{program} compiled") + said.count(f"{program} loaded") == 1


def test_several_processes_evaluate_and_score(two, trained, command):
    path = "runs/two"
    run(2, trained, "evaluate", "--run", path, "--split", "test", "--output", "two.json")
    report = json.loads((trained / path / "report.json").read_text())
    assert json.loads((trained / "two.json").read_text())["model"]["log_loss"] == pytest.approx(
        report["test"]["log_loss"], abs=1e-6
    )
    files = ("--run", path, "--input", "data/shop/log-0.parquet", "--output")
    run(2, trained, "score", *files, "scores-two")
    done = command("score", *files, "scores-one", cwd=trained)
    assert done.returncode == 0, done.stderr
    by_two, by_one = (ds.dataset(trained / f"scores-{n}").to_table() for n in ("two", "one"))
    assert by_two.drop_columns(["score"]) == by_one.drop_columns(["score"])
    # float32 forward passes of other batches
    np.testing.assert_allclose(by_two["score"].to_numpy(), by_one["score"].to_numpy(), atol=1e-6)


def test_processes_that_divide_a_model_score_together(two, trained, command):
    """`tensor` goes across processes: all read all rows and compute each batch together, and the first one writes."""
    files = ("--run", "runs/two", "--input", "data/shop/log-*.parquet", "--part_rows", 500, "--output")
    processes = run(2, trained, "score", *files, "together", "--mesh.tensor", 2)
    assert processes.said(1) == ""
    done = command("score", *files, "one-process", cwd=trained)
    assert done.returncode == 0, done.stderr
    tables = [ds.dataset(trained / name).to_table() for name in ("together", "one-process")]
    assert tables[0].drop_columns(["score"]) == tables[1].drop_columns(["score"])
    np.testing.assert_allclose(*(table["score"].to_numpy() for table in tables), atol=1e-6)


def test_one_process_that_finds_a_bad_row_or_a_signal_ends_the_scoring_of_all(two, trained):
    """The parts that are complete stay, and one process makes the others."""
    log = ds.dataset(sorted((trained / "data/shop").glob("log-*.parquet"))).to_table()
    log = pa.concat_tables([log] * 20)
    wrong = log.slice(0, 1)
    wrong = wrong.set_column(wrong.schema.get_field_index("item_id"), "item_id", pa.array(["no such item"]))
    for name, table in (("long", log), ("bad", pa.concat_tables([log, wrong]))):
        pq.write_table(table, trained / f"{name}.parquet")
    arguments = ("--run", "runs/two", "--part_rows", 500, "--unknown", "error", "--input")
    with Processes(2, trained, "score", *arguments, "bad.parquet", "--output", "scores-bad") as processes:
        assert processes.wait() == [2, 2]
    for process in (0, 1):  # the last row is the second process's
        assert f"bad.parquet row {len(log) + 1}, column item_id" in processes.errors(process)
    assert list((trained / "scores-bad").glob("part-*")) and not (trained / "scores-bad/_SUCCESS").exists()
    with Processes(2, trained, "score", *arguments, "long.parquet", "--output", "scores-long") as processes:
        folder = trained / "scores-long"
        while len(list(folder.glob("part-*"))) < 2 and processes.all[0].poll() is None:
            time.sleep(0.01)
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.wait() == [75, 75], [processes.errors(process) for process in (0, 1)]
    assert not (folder / "_SUCCESS").exists()
    assert "going on" in run(1, trained, "score", *arguments, "long.parquet", "--output", "scores-long").said(0)
    assert ds.dataset(folder).to_table()["item_id"].to_pylist() == log["item_id"].to_pylist()


def test_several_processes_prepare_one_store(small, trained, tmp_path):
    arguments = ("prepare", "--config", "ctr.py", *small[:6], "--data.store", tmp_path / "stores")
    processes = run(2, trained, *arguments)
    assert "impressions" in processes.said(0) and processes.said(1) == "" and processes.errors(1) == ""
    (store,) = (tmp_path / "stores").glob("*/manifest.json")
    assert "prepared before" in run(1, trained, *arguments).said(0) and store.exists()


def test_several_processes_score_with_stored_items(train, trained, command):
    """`split`: each process computes its part of the items, and all of them look up all."""
    train(1, "split", "--model.interaction", "split", "--model.num_layers", 2, how=run)
    files = ("--run", "runs/split", "--input", "data/shop/log-0.parquet", "--output")
    processes = run(2, trained, "score", *files, "split-two")
    done = command("score", *files, "split-one", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "stored" in processes.said(0) and "stored" in done.stdout
    scores = [ds.dataset(trained / f"split-{n}").to_table() for n in ("two", "one")]
    np.testing.assert_allclose(*(table["score"].to_numpy() for table in scores), atol=1e-6)


IDS = ("--optimizer.tables", "rowwise_adagrad", "--optimizer.table_learning_rate", 0.02)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("dcn.py", (*IDS, "--mesh.fsdp", 1)),
        ("dcn.py", (*IDS, "--mesh.data", 1, "--mesh.fsdp", -1)),
        ("two_tower.py", ("--schema.tasks.0.kind", "contrastive")),
    ],
    ids=["tables", "tables divided by rows", "negatives of the whole batch"],
)
def test_tables_of_ids_and_negatives_go_over_processes(small, trained, config, options):
    """Two processes with two devices each log the losses of one: rows of tables are touched by whichever process reads
    them, and a candidate's negatives are those of every process."""
    end = options.index("--mesh.data") if "--mesh.data" in options else len(options)
    flags = ("--max_steps", 12, "--evaluate.every", 12, "--log_every", 1)
    losses = []
    for count, devices, own in ((1, 1, options[:end]), (2, 2, options)):
        name = f"runs/ids-{abs(hash((config, options)))}-{count}"
        run(count, trained, "train", "--config", config, *small, *flags, *own, "--run_dir", name, devices=devices)
        lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses[0]) == 12
    # As in `TOLERANCE`; Adagrad's first updates divide a gradient by its own size as Adam's do.
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


def test_a_teacher_teaches_several_processes_what_it_teaches_one(trained, small):
    """They compute its logits together; the run of one computes them anew, into stores of its own."""
    losses = []
    for count, devices in ((1, 1), (2, 2)):
        name = f"runs/taught-{count}"
        options = ("--distill.teacher", "runs/ctr", "--run_dir", name, "--data.store", f"stores-taught-{count}")
        flags = (*small, "--max_steps", 12, "--evaluate.every", 12, "--log_every", 1, *options)
        processes = run(count, trained, "train", "--config", "ctr.py", *flags, devices=devices)
        assert "computing the logits of runs/ctr" in processes.said(0)
        lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert len(losses[0]) == 12
    # As in `TOLERANCE`, and the teacher's logits come of other batches.
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)
    plan = ("plan", "--config", "ctr.py", *small, "--distill.teacher", "runs/ctr", "--topology", "cpu:8")
    assert "train with: --mesh.data 8" in run(1, trained, *plan).said(0)


def test_a_signal_to_one_process_stops_all_and_one_process_goes_on(train, trained, one):
    run_dir = trained / "runs/stopped"
    with train(2, "stopped") as processes:
        processes.wait_for_step(run_dir, 10)
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.wait() == [75, 75], [processes.errors(process) for process in (0, 1)]
    assert "stopped: saved at step" in processes.said(0)
    assert not (run_dir / "report.json").exists()
    assert "resumed at step" in train(1, "stopped", how=run).said(0)
    assert_same_run(run_dir, one)


def test_a_killed_process_ends_the_other_with_a_message_and_four_go_on(train, trained, one):
    run_dir = trained / "runs/killed"
    with train(2, "killed") as processes:
        processes.wait_for_step(run_dir, 45)
        processes.all[1].kill()
        killed = time.monotonic()
        codes = processes.wait(seconds=60)
        assert codes[0] not in (0, 75) and time.monotonic() - killed < 60
        assert "another process" in processes.errors(0) or "distributed service" in processes.errors(0)
    assert "resumed at step" in train(4, "killed", how=run).said(0)
    assert_same_run(run_dir, one)


def test_wrong_input_ends_all_processes_with_its_code(trained, small, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with Processes(2, trained, "train", "--config", "ctr.py", *small, "--run_dir", tmp_path) as processes:
        assert processes.wait() == [2, 2]
    for process in (0, 1):
        assert "holds files but no config.json" in processes.errors(process)
