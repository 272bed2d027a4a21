"""Waiting for worker processes: one that is killed is noticed, however early that is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers have their names on Linux")

BEGIN = """
import functools, multiprocessing
import grain, numpy as np
from absl import flags
from srsjax.data.batches import workers
from srsjax.data.batches.loader import BY_PIPE

def feed():
    # Elements of 2 MB each: more than a pipe holds, so that a worker is killed in the middle of one.
    flags.FLAGS.mark_as_parsed()
    arrays = grain.MapDataset.range(1000).map(functools.partial(np.full, 250_000))
    elements = grain.experimental.WithOptionsIterDataset(arrays.to_iter_dataset(grain.ReadOptions(0, 0)), BY_PIPE)
    return workers.Feed(elements.mp_prefetch(grain.MultiprocessingOptions(2, 2), workers.begin), 2)

def take_until_lost(made):
    try:
        for _ in range(1000):
            made.take(lambda: False)
    except workers.WorkerLost as lost:
        print(lost, flush=True)
    workers.end(0)
"""
BEFORE_A_LOOK = """
if __name__ == "__main__":
    workers.TICK, workers.DEAD_TICKS = 8.0, 1
    made = feed()
    assert [int(made.take(lambda: False)[0]) for _ in range(4)] == [0, 1, 2, 3]
    multiprocessing.active_children()[0].kill()
    take_until_lost(made)
"""
AS_IT_STARTED = """
if __name__ == "__main__":
    workers.TICK, workers.START_SECONDS = 0.05, 1.0
    made = feed()
    made.take(lambda: False)
    second = max(made._watch._known)
    made._watch._others.add(second)  # as if nothing had seen it yet
    del made._watch._known[second]
    take_until_lost(made)
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (BEFORE_A_LOOK, r"^data worker [12] of 2 \(pid \d+\) was killed by SIGKILL"),
        (AS_IT_STARTED, r"^a data worker \(of 2\) ended as it started$"),
    ],
    ids=["before a look at the processes", "as it started"],
)
def test_a_worker_is_killed_early(tmp_path, what, said):
    """In a process of its own: one that has lost a worker ends by `workers.end`."""
    (tmp_path / "early.py").write_text(BEGIN + what)
    done = subprocess.run([sys.executable, tmp_path / "early.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout.strip()), done
