"""A small shop, trained once for all the tests that look at a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SMALL = (
    *("--data.shop.impressions", 500, "--data.shop.items", 400, "--data.shop.users", 60),
    *("--model.hidden_size", 32, "--model.intermediate_size", 64, "--model.num_layers", 1),
    *("--batch.rows", 8, "--evaluate.every", 20, "--log_every", 5, "--max_steps", 60),
)
"""Overrides that make the default config train in seconds."""


@pytest.fixture(scope="session")
def small():
    """The overrides of SMALL."""
    return SMALL


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory):
    """Folder in which `train --config ctr.py` ran with SMALL; what it printed is in `train.txt`."""
    folder = tmp_path_factory.mktemp("shop")
    done = command("train", "--config", "ctr.py", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "train.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def read_lines():
    """`read_lines(run)`: the records of a run's metrics.jsonl without what depends on the clock."""

    def read(run: Path) -> list[dict]:
        clock = ("examples_per_second", "tokens_per_second", "input_wait", "mfu")
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in record.items() if key not in clock} for record in records]

    return read
