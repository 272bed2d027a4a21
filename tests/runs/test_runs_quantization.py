"""Which groups of parameters become 8-bit."""

from __future__ import annotations

import numpy as np
import pytest

from srsjax.model.int8 import Quantized
from srsjax.runs import quantization

EXACT = np.random.default_rng(0).normal(size=(500, 1))
HURTS = {"a": 0.01, "b": 0.3, "c": 0.1, "d": 0.02}


def logits(kept: tuple[str, ...]) -> np.ndarray:
    """Each group that is not kept adds an error of its own."""
    noise = np.random.default_rng(1).normal(size=(4, 500, 1))
    return EXACT + sum(size * own for (name, size), own in zip(HURTS.items(), noise, strict=True) if name not in kept)


@pytest.mark.parametrize(
    ("bound", "kept"), [(1.0, ()), (0.2, ("b",)), (0.05, ("b", "c")), (0.015, ("b", "c", "d")), (1e-6, tuple("bcda"))]
)
def test_the_worst_are_kept_until_the_rest_is_within_the_bound(bound, kept):
    choice = quantization.choose(tuple(HURTS), bound, logits, EXACT)
    assert choice.kept == kept and choice.error <= bound
    assert choice.whole == pytest.approx(np.linalg.norm(list(HURTS.values())) / EXACT.std(), rel=0.1)
    for name, size in HURTS.items():
        assert choice.errors[name] == pytest.approx(size / EXACT.std(), rel=0.1)


def test_the_error_is_that_of_the_worst_output_in_its_deviations():
    exact = np.array([[0.0, 10.0], [2.0, 30.0]])
    assert quantization.error(exact + np.array([0.1, 1.0]), exact) == pytest.approx(0.1)
    assert quantization.error(exact, exact) == 0
    assert quantization.error(exact * [1, 0] + 1, exact * [1, 0]) > 1e100  # it was constant


def test_encoder_and_tables_are_quantised_and_nothing_else():
    params = {
        "bert/layers/0/attention/qkv/kernel": np.ones((4, 3, 4)),
        "bert/layers/0/mlp/up/kernel": np.ones((4, 8)),
        "bert/layers/0/mlp/up/bias": np.ones(8),
        "bert/embeddings/token/embedding": np.ones((9, 4)),
        "bert/embeddings/position/embedding": np.ones((9, 4)),
        "features/candidate/input_brand/table/embedding": np.ones((5, 4)),
        "head/dense/kernel": np.ones((4, 1)),
    }
    names = quantization.groups(params)
    assert names == (
        "bert/layers/0/attention",
        "bert/layers/0/mlp",
        "bert/embeddings/token",
        "features/candidate/input_brand/table",
    )
    made = quantization.quantized(params, kept=("bert/layers/0/mlp",))
    scales = {path: value.scale.shape for path, value in made.items() if isinstance(value, Quantized)}
    assert scales == {
        "bert/layers/0/attention/qkv/kernel": (1, 3, 4),
        "bert/embeddings/token/embedding": (9, 1),
        "features/candidate/input_brand/table/embedding": (5, 1),
    }
    assert made["bert/layers/0/mlp/up/kernel"] is params["bert/layers/0/mlp/up/kernel"]
    assert quantization.size(made) < quantization.size(params)
