"""Which layers a pruned encoder keeps, and their parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import make_spec

from srsjax.config import Model
from srsjax.errors import InputError
from srsjax.model.interactions import INTERACTIONS
from srsjax.model.spec import encoder_config
from srsjax.runs.pruning import kept_layers, pruned, pruned_spec


@pytest.mark.parametrize(
    ("drop", "count", "keep", "kept"),
    [
        ("top", 6, 3, (0, 1, 2)),
        ("alternate", 6, 3, (1, 3, 5)),
        ("alternate", 6, 4, (0, 1, 3, 5)),
        ("alternate", 12, 6, (1, 3, 5, 7, 9, 11)),
        ("alternate", 5, 4, (0, 1, 2, 4)),
        ("alternate", 6, 2, (1, 3)),  # more than every other one: then the top one
        ("measured", 6, 3, (1, 3, 4)),
    ],
)
def test_layers_are_kept_as_they_are_left_out(drop, count, keep, kept):
    """Measured: each layer has a weight that is missed where it is gone, but 3 and 5 stand for each other."""
    weight = (0.1, 5.0, 0.2, 4.0, 3.0, 4.1)
    asked = []

    def error(layers):
        asked.append(layers)
        gone = {*range(6)} - {*layers}
        missed = sum(weight[layer] for layer in gone - {3, 5})
        return missed + (10 if {3, 5} <= gone else 0.05 * len(gone & {5}) + 1 * len(gone & {3}))

    assert kept_layers(count, keep, drop, error) == kept
    assert drop == "measured" or not asked


@pytest.mark.parametrize("keep", [0, 6, 7])
def test_nothing_to_leave_out_is_refused(keep):
    with pytest.raises(InputError, match=f"--layers: found {keep}, expected 1 to 5"):
        kept_layers(6, keep, "top", lambda layers: 0.0)


def test_layers_are_numbered_anew():
    params = {f"bert/layers/{layer}/mlp/up/kernel": np.full(2, layer) for layer in range(12)}
    params |= {"bert/embeddings/token/embedding": np.ones(2), "head/dense/bias": np.zeros(1)}
    made = pruned(params, (1, 10, 11))
    assert {path: value[0] for path, value in made.items() if "layers" in path} == {
        f"bert/layers/{place}/mlp/up/kernel": layer for place, layer in enumerate((1, 10, 11))
    }
    assert {*made} - {*params} == set() and len(made) == 5


def test_split_layers_are_counted_among_those_kept():
    model = Model(interaction="split", num_layers=6, split_layers=4)
    spec = replace(make_spec(model, encoder_config(model, 100)), interaction=INTERACTIONS["split"])
    made = pruned_spec(spec, (1, 3, 5))
    assert (made.encoder.num_layers, made.split_layers) == (3, 2)
