"""Clicks by text, image, price and id, each a vector that attention weighs for every candidate.

    bash launch/local.sh train --config multimodal.py

The shop of `signals.py`, clicks alone, by the product of two vectors. `attention` sums the vectors of a side's
modalities with weights that depend on what they hold; `Scorer.weights` reads those of the candidate. The shop has image
vectors as a list column. With pictures, a folder and an image encoder make them (once, kept beside the stores):

    Vector("image", column="items.picture", files="pictures", encoder="facebook/dinov2-small", size=384)

Results: configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import TrainConfig


def get_config() -> TrainConfig:
    base = read_config(str(Path(__file__).with_name("signals.py")))
    schema = replace(base.schema, tasks=base.schema.tasks[:1])
    model = replace(base.model, interaction="towers", readout="mean", combine="attention")
    return replace(base, schema=schema, model=model)
