"""How much each token and each feature moves a logit: one point of the path of integrated gradients.

    attribution_i = (x_i - x'_i) * integral over a in [0, 1] of dF/dx_i at x' + a (x - x')

(Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks"). x are the embeddings of tokens and the vectors of
features, x' those of a baseline. The attributions of a pair sum to F(x) - F(x').
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srsjax.data.batches.batch import PackedBatch
from srsjax.data.inputs import InputSpec
from srsjax.model import ctr


class Slopes(NamedTuple):
    """What a point of the path adds to the integral, by what it belongs to."""

    logits: jax.Array
    """[R, C] float32, the wanted logit at this point."""
    tokens: jax.Array | None
    """[R, L] float32; None where the model reads no text."""
    features: dict[str, jax.Array]
    """By feature, [R, C] float32."""


def slopes(
    graphdef: nnx.GraphDef,
    params: ctr.Params,
    batch: PackedBatch,
    baseline: PackedBatch,
    wanted: jax.Array,
    share: jax.Array,
) -> Slopes:
    """The slopes at the point `share` of the straight line from a baseline to a batch.

    Args:
      baseline: from `baseline_of`.
      wanted: [R, C, K] float32, what is explained: the sum of each candidate's logits times it.
      share: [] float32 in [0, 1].
    """
    model = ctr.merge(graphdef, params)
    start, end = _inputs(model, baseline), _inputs(model, batch)
    change = jax.tree.map(jnp.subtract, end, start)

    def explained(at) -> tuple[jax.Array, jax.Array]:
        words, vectors = at
        text: Sequence[jax.Array | None] = [None] * (1 + model.spec.interaction.reads_context)
        if words is not None:
            text = model.encode(batch._replace(tokens=words), model.spec.interaction.read(batch))
        read = model.combined(text, vectors) if vectors is not None else text
        own = (model.logits(read, None) * wanted).sum(-1)
        return own.sum(), own

    gradient, logits = jax.grad(explained, has_aux=True)(jax.tree.map(lambda a, d: a + share * d, start, change))
    words, vectors = jax.tree.map(lambda g, d: (g * d).sum(-1), gradient, change)
    names = ctr.feature_names(model.spec)
    found = {name: x for side in vectors or {} for name, x in zip(names[side], vectors[side], strict=True)}
    return Slopes(logits, words, found)


def _inputs(model: ctr.ClickModel, batch: PackedBatch):
    """Embeddings of tokens [R, L, D] and vectors of features [R, C, D], None where the model reads none."""
    words = model.bert.embeddings.token(batch.tokens) if model.spec.reads_text else None
    return words, model.feature_vectors(batch) if model.spec.features else None


def baseline_of(batch: PackedBatch, features: Sequence[InputSpec], special: Sequence[int], unknown: int) -> PackedBatch:
    """A batch, on the host, that says nothing: every token but `special` ones is `unknown`, every id 0, every number
    and vector missing (a vector that cannot be missing is 0). `features` are those that the model reads."""
    kinds = {each.name: each for each in features}

    def nothing(name: str, values: np.ndarray) -> np.ndarray:
        if name not in kinds:
            return values  # a batch also has what `model.combine text` does not read
        if kinds[name].kind == "categorical" or (kinds[name].kind == "vector" and not kinds[name].may_be_missing):
            return np.zeros_like(values)
        return np.full_like(values, np.nan)

    return batch._replace(
        tokens=np.where(np.isin(batch.tokens, special), batch.tokens, unknown).astype(batch.tokens.dtype),
        context_features={name: nothing(name, values) for name, values in batch.context_features.items()},
        candidate_features={name: nothing(name, values) for name, values in batch.candidate_features.items()},
    )
