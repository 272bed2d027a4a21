"""Checkpoints of a long training leave nothing behind in the process that writes them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import jax.numpy as jnp
import pytest

from srsjax.runs.checkpoints import Checkpointer
from srsjax.runs.state import TrainState


def held() -> tuple[int, int]:
    """Threads of Python, and open files."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux says which files are open")
def test_each_checkpoint_gives_back_its_thread_and_its_files(tmp_path):
    params = {"kernel": jnp.ones((4, 4))}
    with Checkpointer(tmp_path / "checkpoints", keep=2) as checkpointer:

        def save(step: int) -> None:
            checkpointer.save(step, TrainState(jnp.int32(step), params, {"mean": params}, {}), {}, step)

        for step in range(1, 6):
            save(step)
        checkpointer.wait()
        before = held()
        for step in range(6, 31):
            save(step)
        checkpointer.wait()
        after = held()
    # 25 checkpoints: one that left a thread with its event loop, of three files, would be seen many times.
    assert after[0] <= before[0] + 5 and after[1] <= before[1] + 10, (before, after)
