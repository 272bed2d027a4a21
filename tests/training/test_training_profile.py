"""What `profile.steps` may be; traces themselves are read in tests/e2e/test_e2e_observe.py."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.compilation import Compilations
from srsjax.config import Checkpoints, Profile, TrainConfig
from srsjax.console import Console
from srsjax.errors import InputError
from srsjax.runs.run_folder import RunFolder
from srsjax.training.goodput import Goodput
from srsjax.training.loop import fit
from srsjax.training.profile import profiled_steps


def test_first_and_last_step_are_included():
    assert list(profiled_steps("10:15", 15)) == [10, 11, 12, 13, 14, 15]
    assert list(profiled_steps("1:1")) == [1] and not profiled_steps("")


@pytest.mark.parametrize("text", ["10", "10:", ":15", "15:10", "0:3", "-1:3", "1:2:3", "a:b", "1.5:3", "1 : 2", "²:³"])
def test_nonsense_is_refused(text):
    with pytest.raises(InputError, match=r"profile\.steps: found .*expected FIRST:LAST"):
        profiled_steps(text)


def test_steps_that_the_run_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"found '10:15', expected steps up to 14"):
        profiled_steps("10:15", 14)


def test_a_trace_that_was_cut_off_is_written_and_the_next_start_traces_the_rest(problem, tmp_path):
    p, folder, console = problem(max_steps=6), RunFolder(tmp_path), Console(file=io.StringIO(), width=1000)
    config, done = TrainConfig(checkpoints=Checkpoints(every=1), profile=Profile("2:5")), []

    def cut_off(state, batch):
        if len(done) == 3:
            raise RuntimeError("cut off")
        done.append(batch)
        return p.step(state, batch)

    rest = (lambda params: {}, np.zeros(6), folder, p.session.mesh, console, Compilations(), Goodput())
    initial, third = (jax.tree.map(jnp.copy, p.state) for _ in range(2))  # the step donates its state
    with pytest.raises(RuntimeError, match="cut off"):
        fit(config, p.state, cut_off, p.batches, *rest)
    fit(config, initial, p.step, p.batches, *rest)
    fit(config, third, p.step, p.batches, *rest)  # there is nothing left to do
    said = [line.split(" in ")[0] for line in console.file.getvalue().splitlines() if line.startswith("profile: ")]
    assert said == [
        "profile: steps 2 to 3",
        "profile: steps 4 to 5",
        "profile: steps 2:5 were done before, so nothing is traced",
    ]
    traces = sorted((folder.tensorboard / "plugins/profile").iterdir())
    assert [trace.name for trace in traces] == ["steps-2-5", "steps-4-5"]
    assert all(len([*trace.glob("*.xplane.pb")]) == 1 for trace in traces)
