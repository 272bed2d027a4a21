"""MFU in log lines: the arithmetic of real tokens over what the chips could do, and nothing where that is unknown."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from srsjax.compilation import Compilations
from srsjax.config import TrainConfig
from srsjax.console import Console
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.step import StepMetrics
from srsjax.training.goodput import Goodput
from srsjax.training.loop import fit
from srsjax.training.meter import Meter, known_work

CHIPS = SimpleNamespace(devices=np.array([[SimpleNamespace(device_kind="TPU v5 lite")] * 4]), size=4)


def by_hand(batch) -> tuple[float, int]:
    """FLOPs of a training step of tests/small_problem.py's model in `cross`, pair by pair, and its tokens."""
    width, wide, total, tokens = 64, 128, 0, 0
    for row in batch.segment.reshape(-1, batch.segment.shape[-1]):
        for pair in set(row.tolist()) - {0}:
            n = int((row == pair).sum())
            tokens += n
            total += n * (8 * width**2 + 4 * width * wide) + 4 * width * n * n  # the first of two layers
            total += 4 * n * width**2 + (4 * width**2 + 4 * width * wide) + 4 * width * n  # the last: one query a pair
    return 3.0 * total, tokens


def test_log_lines_have_the_share_of_four_chips(problem, tmp_path, capsys):
    p = problem(max_steps=4)
    work = known_work(p.session.spec, CHIPS)
    arguments = (lambda params: {}, np.zeros(4), RunFolder(tmp_path), p.session.mesh, Console(width=200))
    fit(TrainConfig(log_every=2), p.state, p.step, p.batches, *arguments, Compilations(), Goodput(), work)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    p.batches.restore(0)
    counts = [by_hand(batch) for batch, _ in p.batches]
    assert len(lines) == 2
    for line, (first, second) in zip(lines, (counts[:2], counts[2:]), strict=True):
        flops, tokens = first[0] + second[0], first[1] + second[1]
        seconds = tokens / line["tokens_per_second"]
        assert line["mfu"] == pytest.approx(flops / seconds / (4 * 197e12), rel=1e-9)
    assert f"MFU {lines[0]['mfu']:.0%}" in capsys.readouterr().out


def test_a_cpu_has_no_peak_and_no_share(problem, tmp_path):
    p = problem(max_steps=1)
    assert known_work(p.session.spec, p.session.mesh) is None
    arguments = (lambda params: {}, np.zeros(1), RunFolder(tmp_path), p.session.mesh, Console(quiet=True))
    fit(TrainConfig(log_every=1), p.state, p.step, p.batches, *arguments, Compilations(), Goodput())
    assert "mfu" not in (tmp_path / "metrics.jsonl").read_text()
    assert jax.default_backend() == "cpu"


def test_input_is_waited_for_only_while_the_device_has_nothing_to_do():
    lines = []
    log = SimpleNamespace(
        advance=lambda step: None, scalars=lambda *line: lines.append(line[-1]), said=lambda *line: None
    )
    anomalies = SimpleNamespace(see=lambda steps, values, numbers: 0)
    meter = Meter(log, np.ones(9), 9, Goodput(), anomalies)
    done = StepMetrics(*np.ones(len(StepMetrics._fields), np.float32))
    for step, (ready, waits) in enumerate([(False, (0, 0)), (True, (0.5, 1)), (None, (0.5, 1))], 1):
        running = None if ready is None else SimpleNamespace(loss=SimpleNamespace(is_ready=lambda ready=ready: ready))
        meter.started -= 1  # a second of steps
        meter.waited_for_input(0.9, running)
        meter.add(step, done, (0.0, 0))
        meter.flush()
        assert waits[0] <= lines[-1]["input_wait"] <= waits[1]
