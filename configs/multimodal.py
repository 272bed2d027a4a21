"""Clicks by text, image, price and id, each a vector that attention weighs for every candidate.

    bash launch/local.sh train --config multimodal.py

The shop of `signals.py`, clicks alone. `attention` sums the vectors of the modalities with weights that depend on what
they hold; `Scorer.weights` reads them. Image vectors are a list column here; of a folder of pictures they can be made
by any image encoder beforehand. Results: configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import TrainConfig


def get_config() -> TrainConfig:
    base = read_config(str(Path(__file__).with_name("signals.py")))
    schema = replace(base.schema, tasks=base.schema.tasks[:1])
    return replace(base, schema=schema, model=replace(base.model, combine="attention"))
