"""Clicks of the simulated shop without text by a plain multi-layer perceptron: the baseline that every team has.

    bash launch/local.sh train --config mlp.py

Everything but the combination is that of `dcn.py`: ids, categories, prices and the items clicked before, embedded,
joined and read by hidden layers of 256 and 128. `--model.combine wide_deep` and `deepfm` are the other two classics.
Results: configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import TrainConfig


def get_config() -> TrainConfig:
    base = read_config(str(Path(__file__).with_name("dcn.py")))
    return replace(base, model=replace(base.model, combine="mlp", combine_layers=(256, 128), combine_dropout=0.1))
