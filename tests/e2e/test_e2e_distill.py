"""A run that learns from another one: what the teacher says of each training row, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from srsjax.config import Distill, Mesh
from srsjax.data.preparing.shared import shared_store
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.model.spec import Outputs
from srsjax.runs import distillation
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.warm_start import read_spec


@pytest.fixture
def teacher(trained, monkeypatch):
    """The run `runs/ctr`, in whose folder the test is."""
    monkeypatch.chdir(trained)
    return RunFolder("runs/ctr")


def logits_of(config, spec):
    """`teacher_logits`, the store's training split, and what was said."""
    said: list[str] = []
    store = shared_store(config, log=lambda _: None)
    found = distillation.teacher_logits(config, spec, store, said.append)
    return found, store.split("train"), said


def test_logits_are_those_of_the_teacher_for_whatever_reads_the_same_log(teacher):
    spec, own = read_spec(teacher), replace(teacher.config(), distill=Distill("runs/ctr"))
    scorer = Scorer.load("runs/ctr", mesh=Mesh(8), raw=True)
    store = shared_store(own, log=lambda _: None)
    train = store.split("train")
    expected = dict(zip(train.example, scorer.raw_logits(train, store.items), strict=True))
    # The same store, and one of another tokenizer and another order of features, which the teacher has to read anew.
    schema = replace(own.schema, candidate=own.schema.candidate[:1])
    other = replace(own, schema=schema, tokenizer=replace(own.tokenizer, vocab_size=300))
    for config in (own, other):
        found, split, said = logits_of(config, spec)
        assert "computing the logits of runs/ctr" in said[0] and found.dtype == np.float32
        # Batches of other neighbours: float32 sums in another order.
        np.testing.assert_allclose(found, [expected[number] for number in split.example], atol=1e-6)
        again, _, said = logits_of(config, spec)
        assert "computed before" in said[0]
        np.testing.assert_array_equal(again, found)
    assert np.ptp(found) > 1e-3 and not list((teacher.path.parents[1] / own.data.store).glob(".teacher-*"))


def test_candidates_that_the_teacher_does_not_read_are_refused(teacher):
    train = shared_store(teacher.config(), log=lambda _: None).split("train")
    logits = np.arange(len(train.item), dtype=np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(logits))
    found = distillation.joined(logits[order], train.example[order], train, "runs/ctr")
    np.testing.assert_array_equal(found, logits)
    with pytest.raises(InputError, match=r"2 of [\d,]+ training candidates are left out where runs/ctr reads"):
        distillation.joined(logits[2:], train.example[2:], train, "runs/ctr")


def test_tasks_and_classes_go_by_name():
    given = (
        Outputs("topic", "multiclass", 3, ("a", "b", "c")),
        Outputs("stars", "regression", mean=3.0, deviation=2.0),
    )
    wanted = (
        Outputs("stars", "regression", mean=1.0, deviation=4.0),
        Outputs("topic", "multiclass", 3, ("c", "a", "b")),
    )
    columns = distillation.matching_columns("runs/t", wanted, given)
    made = distillation.as_outputs(np.array([[1.0, 2.0, 3.0, 0.5]]), columns, wanted, given)
    np.testing.assert_allclose(made, [[(3 + 2 * 0.5 - 1) / 4, 3.0, 1.0, 2.0]])
    for outputs, said in (
        (Outputs("buy", "binary"), "expected 'buy' of kind binary"),
        (Outputs("stars", "binary"), "expected 'stars' of kind binary"),
        (Outputs("topic", "multiclass", 2, ("a", "d")), "of kind multiclass with the same classes"),
    ):
        with pytest.raises(InputError, match=said):
            distillation.matching_columns("runs/t", (outputs,), given)


def test_the_command_trains_and_refuses_another_teacher(trained, small, command):
    options = (*small, "--max_steps", 8, "--model.interaction", "shared", "--model.readout", "first")
    options = (*options, "--distill.teacher", "runs/ctr", "--distill.weight", 1.0, "--run_dir", "runs/taught")
    done = command("train", "--config", "ctr.py", *options, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert re.search(r"teacher-\w+\.npy", done.stdout)
    report = json.loads((trained / "runs/taught/report.json").read_text())
    assert report["steps"] == 8 and 0 < report["test"]["log_loss"] < 1
    (trained / "runs/taught/report.json").unlink()  # as if it had been killed before the end
    file = trained / "runs/taught/teacher.json"
    file.write_text(file.read_text().replace('"checkpoint": ', '"checkpoint": 9'))
    done = command("train", "--config", "ctr.py", *options, cwd=trained)
    assert done.returncode == 2 and "the teacher changed since runs/taught began" in done.stderr
    assert done.stderr.count("\n") == 1
    options = (*small, "--distill.teacher", "runs/none", "--run_dir", "runs/other")
    done = command("train", "--config", "ctr.py", *options, cwd=trained)
    assert done.returncode == 2 and "runs/none" in done.stderr and done.stderr.count("\n") == 1
