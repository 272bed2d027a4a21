"""Click, purchase after a click and rating from one model: PLE, experts of all tasks beside experts of each.

    bash launch/local.sh train --config multitask.py

The shop and the signals of `signals.py`, whose tasks share all but their heads. Here each task mixes two experts that
all share with one of its own, and pulls equally hard at what is shared (`task_weights gradients`). Results:
configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import TrainConfig


def get_config() -> TrainConfig:
    base = read_config(str(Path(__file__).with_name("signals.py")))
    return replace(base, model=replace(base.model, experts=2, task_experts=1, task_weights="gradients"))
