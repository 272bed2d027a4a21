"""How many stars a review gives, 1 to 5, and whether it recommends the garment: MiniLM-L6, multiclass and binary.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config sentiment

Data: Women's E-Commerce Clothing Reviews, as in `reviews.py`, with the column rating. One forward pass answers both
questions; the stars are classes, so that the report has a line for each. Results: configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import Task, TrainConfig


def get_config() -> TrainConfig:
    base = read_config(str(Path(__file__).with_name("reviews.py")))
    tasks = (Task("rating", kind="multiclass", classes=("1", "2", "3", "4", "5")), Task("recommended"))
    return replace(base, schema=replace(base.schema, tasks=tasks), model=replace(base.model, readout="mean"), epochs=2)
