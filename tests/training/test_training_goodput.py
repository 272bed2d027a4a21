"""Every second of a run is in one part, whatever ended its starts; the clock is a number the test sets."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from itertools import pairwise

import pytest

from srsjax.training.goodput import PARTS, Goodput, account, read, said


@dataclass
class Clock:
    """Seconds that pass when they are told to."""

    now: float = 5000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """Starts of a run, each with a clock of its own that began at another number."""

    def __init__(self, path):
        self.path, self.clock, self.unix = path, Clock(), 1e9

    def start(self, stopped: float = 0.0) -> Goodput:
        """A start `stopped` seconds after the last line of the one before."""
        self.unix += stopped
        self.clock = Clock(self.clock.now / 7)
        self.began, self.first = self.unix, self.clock.now
        return Goodput(self.clock, self.unix)

    def spend(self, seconds: float) -> None:
        self.clock.now += seconds
        self.unix += seconds


@pytest.fixture
def run(tmp_path):
    """A run without any start."""
    return Run(tmp_path / "goodput.jsonl")


def parts(**seconds: float) -> dict[str, float]:
    """All PARTS, 0 where nothing is said."""
    return dict.fromkeys(PARTS, 0.0) | {name.replace("_", "-"): value for name, value in seconds.items()}


def test_time_is_in_the_part_that_was_entered_and_goes_back_after_it(run):
    goodput = run.start()
    run.spend(3)
    goodput.open(run.path)
    run.spend(4)
    goodput.enter("steps")
    run.spend(10)
    with goodput.of("evaluation"):
        run.spend(5)
        goodput.move(2, "compile")  # known at its end: two of the five seconds
        run.spend(1)
    with pytest.raises(RuntimeError), goodput.of("checkpoints"):
        run.spend(7)
        raise RuntimeError
    run.spend(1)
    assert goodput.total() == parts(set_up=7, steps=11, evaluation=4, compile=2, checkpoints=7)
    assert goodput.said() == (
        "goodput 35 % of 31.0 s: steps 11.0 s, compile 2.0 s, data 0.0 s, evaluation 4.0 s, checkpoints 7.0 s, "
        "log 0.0 s, set-up 7.0 s, repeated 0.0 s, stopped 0.0 s"
    )


def test_programs_that_other_threads_compile_keep_nobody_waiting(run):
    goodput = run.start()
    goodput.open(run.path)
    run.spend(10)
    other = threading.Thread(target=goodput.compiled, args=(6,))
    other.start()
    other.join()
    goodput.compiled(1)
    goodput.compiled(60)  # more than there was: a part is never negative
    assert goodput.total() == parts(compile=10)


def first_start(run) -> None:
    """Checkpoints at steps 5 and 10, killed at step 13; nothing is closed."""
    goodput = run.start()
    run.spend(8)
    goodput.open(run.path)
    goodput.enter("steps")
    goodput.mark(0)
    for step in range(1, 14):
        run.spend(2)
        goodput.tick(step)
        if step in (5, 10):
            goodput.mark(step)
            with goodput.of("checkpoints"):
                run.spend(0.5)
            goodput.mark(step)


@pytest.mark.parametrize(
    ("went_on_at", "steps", "checkpoints", "repeated"),
    [(10, 20, 1, 6), (5, 10, 0.5, 6 + 10 + 0.5), (0, 0, 0, 26 + 1), (13, 26, 1, 0)],
)
def test_work_after_the_checkpoint_that_a_start_goes_on_from_is_repeated(run, went_on_at, steps, checkpoints, repeated):
    first_start(run)
    again = run.start(stopped=100)
    run.spend(4)
    again.open(run.path)
    again.enter("steps")
    assert again.resumed
    again.mark(went_on_at)
    run.spend(50)
    expected = parts(steps=steps + 50, checkpoints=checkpoints, repeated=repeated, stopped=100, set_up=8 + 4)
    assert again.total() == expected
    assert sum(expected.values()) == run.unix - 1e9
    assert f"stopped {100} s" in again.said()


def test_a_later_start_from_an_older_checkpoint_takes_from_all_starts_before_it(run):
    first_start(run)
    second = run.start(stopped=1)  # goes on at 10, and dies before its next checkpoint
    second.open(run.path)
    second.enter("steps")
    second.mark(10)
    run.spend(9)
    second.tick(12)
    third = run.start(stopped=1)  # dies before it has read a checkpoint: no work, nothing lost
    third.open(run.path)
    run.spend(2)
    fourth = run.start()  # the checkpoint of step 10 was lost
    fourth.open(run.path)
    fourth.enter("steps")
    fourth.mark(5)
    run.spend(30)
    total = fourth.total()
    assert total == parts(steps=10 + 30, checkpoints=0.5, repeated=16.5 + 9, stopped=2 + 2, set_up=8)
    assert sum(total.values()) == run.unix - 1e9


def test_a_kill_may_cut_a_line_anywhere(run):
    first_start(run)
    whole = run.path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for length in range(last, len(whole) + 1):
        run.path.write_bytes(whole[:length])
        again = Goodput(Clock(), 1e9 + 1000)
        again.open(run.path)
        again.mark(10)
        again.close()
        assert [line.get("step") for line in read(run.path)][-3:] == [None, 10, 10]
        total = account(read(run.path))
        assert total["steps"] == 20 and total["repeated"] in (4, 6)  # the last line said 13
        assert sum(total.values()) == pytest.approx(1000)


def test_lines_become_rare_in_a_long_run(run):
    goodput = run.start()
    goodput.open(run.path)
    goodput.enter("steps")
    for step in range(1, 200_001):  # 28 hours of steps of half a second
        run.spend(0.5)
        goodput.tick(step)
    goodput.close()
    lines = read(run.path)
    assert len(lines) < 7000
    gaps = [sum(b["seconds"].values()) - sum(a["seconds"].values()) for a, b in pairwise(lines)]
    assert max(gaps) <= 100_000 / 1000 + 1 and max(gaps[:100]) == 1


def test_without_a_file_nothing_is_written_and_a_clock_put_back_makes_nothing_negative(run):
    Goodput(Clock()).mark(3)
    lines = [{"start": 1000.0, "seconds": {"set-up": 5.0}}, {"start": 900.0, "seconds": {"set-up": 1.0}}]
    assert account(lines) == parts(set_up=6)
    assert said(parts(steps=90, set_up=10, stopped=100)).startswith("goodput 45 % of 200 s, 90 % of the time it ran: ")
    assert json.loads(json.dumps(account([]))) == parts()
