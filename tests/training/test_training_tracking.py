"""Experiment trackers: what they are told, and that none of them can stop, change or hold up a run."""

from __future__ import annotations

import io
import json
import math
import re
import threading

import numpy as np
import pytest

from srsjax import distributed, train
from srsjax.compilation import Compilations
from srsjax.config import Evaluate, TrainConfig
from srsjax.config_io import to_json
from srsjax.console import Console
from srsjax.errors import InputError
from srsjax.runs.run_folder import RunFolder
from srsjax.training import tracking
from srsjax.training.goodput import Goodput
from srsjax.training.loop import fit
from srsjax.training.trackers import flat, kept_id, metric_name
from srsjax.training.tracking import MOST_WAITING, Tracking, any_hangs, check_trackers

CONFIG = TrainConfig(log_every=2, evaluate=Evaluate(every=3))


class Memory:
    """A tracker that remembers its calls; one of them raises, where that is asked for."""

    def __init__(self, failing: str = "", error: BaseException | None = None):
        self.failing, self.error = failing, error or ConnectionError("no\nroute")
        self.calls: list[tuple] = []

    def start(self, name, config, folder, step):
        self._note("start", name, config, folder, step)

    def log(self, step, values):
        self._note("log", step, values)

    def finish(self, summary):
        self._note("finish", summary)

    def _note(self, *call):
        self.calls.append(call)
        if call[0] == self.failing:
            raise self.error


class Blocked(Memory):
    """A tracker that does not return from its first call before `released`."""

    def __init__(self):
        super().__init__()
        self.released = threading.Event()

    def _note(self, *call):
        super()._note(*call)
        self.released.wait()


def run(problem, folder, trackers, says, patience=60.0):
    """Six steps with trackers, six log lines: those of metrics.jsonl but for what depends on the clock."""
    p, console = problem(max_steps=6), Console(file=io.StringIO())
    with Tracking(trackers, "shop", to_json(CONFIG), folder, says.append, patience) as made:
        arguments = (np.zeros(6), RunFolder(folder), p.session.mesh, console, Compilations(), Goodput())
        auc = iter([0.7, 0.75])
        fit(CONFIG, p.state, p.step, p.batches, lambda _: {"auc": next(auc), "gauc": math.nan}, *arguments, None, made)
        made.summarize({"report/test/auc": 0.5})
    lines = [json.loads(line) for line in RunFolder(folder).metrics_file.read_text().splitlines()]
    clock = ("examples_per_second", "tokens_per_second", "input_wait", "mfu")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def test_a_tracker_is_told_what_the_log_holds(problem, tmp_path):
    tracker, says = Memory(), []
    lines = run(problem, tmp_path, {"memory": tracker}, says)
    assert not says
    assert tracker.calls[0] == ("start", "shop", to_json(CONFIG), tmp_path, 0)
    assert tracker.calls[-1] == ("finish", {"report/test/auc": 0.5})
    logged = tracker.calls[1:-1]
    assert [(call[0], call[1]) for call in logged] == [("log", line["step"]) for line in lines] and len(lines) == 6
    for (_, _, values), line in zip(logged, lines, strict=True):
        expected = {f"{line['kind']}/{k}": v for k, v in line.items() if k not in ("kind", "step") and v != "nan"}
        assert expected.items() <= values.items() and all(map(math.isfinite, values.values()))
        assert (line["kind"] == "valid") == ("valid/auc" in values) and "valid/gauc" not in values


@pytest.mark.parametrize("failing", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [ConnectionError("no\nroute"), SystemExit(3)], ids=["error", "exit"])
def test_a_tracker_that_fails_is_dropped_in_one_line_and_changes_nothing(problem, tmp_path, failing, error):
    alone = run(problem, tmp_path / "alone", {}, [])
    (tmp_path / "with").mkdir()
    bad, good, says = Memory(failing, error), Memory(), []
    assert run(problem, tmp_path / "with", {"bad": bad, "good": good}, says) == alone
    assert len(says) == 1 and "\n" not in says[0]
    assert says[0].startswith(f"tracking: bad is dropped, the run goes on: {failing} failed: {type(error).__name__}")
    assert [call[0] for call in bad.calls].count(failing) == 1 and bad.calls[-1][0] == failing  # not asked again
    assert good.calls[-1] == ("finish", {"report/test/auc": 0.5}) and len(good.calls) == 8


def test_a_tracker_that_hangs_is_dropped_when_the_run_ends(problem, tmp_path):
    blocked, good, says = Blocked(), Memory(), []
    lines = run(problem, tmp_path, {"blocked": blocked, "good": good}, says, patience=0.5)
    assert len(lines) == 6 and says == [
        "tracking: blocked is dropped, the run goes on: its start did not return in time"
    ]
    assert len(blocked.calls) == 1 and any_hangs()
    blocked.released.set()
    for thread in threading.enumerate():
        if thread.name.endswith("blocked"):
            thread.join()
    assert len(blocked.calls) == 1 and not any_hangs()  # it is called no more


def test_a_tracker_that_falls_behind_is_dropped_during_the_run(tmp_path):
    blocked, says = Blocked(), []
    with Tracking({"blocked": blocked}, "shop", {}, tmp_path, says.append, 0.0) as made:
        made.start(0)
        for step in range(MOST_WAITING + 2):  # one call is with the tracker
            made.log(step, {"loss": 1.0})
        assert len(says) == 1 and says[0].startswith("tracking: blocked is dropped, the run goes on: 1,000 calls wait")
        made.log(5000, {"loss": 1.0})
    assert len(says) == 1
    blocked.released.set()


def test_a_run_that_stops_before_its_end_is_told_so(tmp_path):
    tracker = Memory()
    with pytest.raises(KeyboardInterrupt), Tracking({"memory": tracker}, "shop", {}, tmp_path, print) as made:
        made.start(7)
        made.log(8, {"loss": 1})
        raise KeyboardInterrupt
    assert tracker.calls == [("start", "shop", {}, tmp_path, 7), ("log", 8, {"loss": 1.0}), ("finish", None)]


def test_what_ends_before_the_first_step_starts_no_tracker(tmp_path):
    tracker = Memory()
    with Tracking({"memory": tracker}, "shop", {}, tmp_path, print):
        pass
    assert not tracker.calls


def test_only_the_first_process_tracks(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", lambda: made.append(Memory()) or made[-1])
    for index, count in ((1, 0), (0, 1)):
        monkeypatch.setattr(distributed, "process_index", lambda index=index: index)
        with train.tracked(TrainConfig(), RunFolder(tmp_path), Console(file=io.StringIO())) as tracked:
            tracked.start(0)
        assert len(made) == count


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    check_trackers(["tensorboard"])
    for name in ("wandb", "mlflow", "trackio"):
        with pytest.raises(InputError, match=re.escape(f"--track {name}: needs {name}; pip install 'srsjax[{name}]'")):
            check_trackers(["tensorboard", name])


def test_an_id_is_made_once(tmp_path):
    file = tmp_path / "tracking/wandb.id"
    assert kept_id(file, lambda: "first") == ("first", True)
    assert kept_id(file, lambda: "second") == ("first", False)
    file.write_text("\n")
    assert kept_id(file, lambda: "third") == ("third", True)


def test_names_and_fields_are_as_mlflow_takes_them():
    assert metric_name("valid/ndcg@10") == "valid/ndcg_at_10" and metric_name("a(b)/c-d.e f") == "a_b_/c-d.e f"
    found = dict(flat(to_json(TrainConfig())))
    assert found["optimizer.learning_rate"] == 3e-5 and found["track"] == ["tensorboard"] and "optimizer" not in found
