"""The scores of pairs as one StableHLO program: `jax.export` writes it, and JAX of a later version runs it.

A row of the program is one pair, padded: it need not know how pairs are packed. Rows and tokens are symbolic, so that
one program takes any number of both, and one artifact holds the program for CPU, CUDA and TPU. Parameters are an
argument. Attention is plain XLA, the only one that all platforms have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import Layout
from srsjax.data.inputs import InputSpec
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import KINDS
from srsjax.model import ctr
from srsjax.model.attention import attend
from srsjax.model.compute import Compute
from srsjax.model.int8 import flat, from_flat
from srsjax.model.spec import ModelSpec
from srsjax.objectives.losses import Objectives

PLATFORMS = ("cpu", "cuda", "tpu")
"""What a program is lowered for."""

Inputs = dict[str, Any]
"""By name, the arrays of B pairs of at most T tokens: `tokens` [B, T] int32, those of the context and then those of the
candidate, special ones included; `context_length` and `candidate_length` [B] int32; `features`, a dict of arrays [B,
...] by the names of `features_read`. Without text there are `features` alone."""

DTYPES = {kind.name: kind.dtype for kind in KINDS.values() if issubclass(kind, ArrayKind)}
"""Of a feature's array, by `InputSpec.kind`."""


def features_read(spec: ModelSpec) -> tuple[InputSpec, ...]:
    """The features besides text whose values scores depend on: those of training alone are constants."""
    return tuple(feature for feature in spec.features if feature.fixed is None)


def feature_shape(feature: InputSpec) -> tuple[int, ...]:
    """Shape of one value of a feature."""
    if feature.kind == "vector":
        return (feature.size,)
    return (feature.values,) if feature.values > 1 else ()


def shapes(spec: ModelSpec) -> Inputs:
    """Shapes and dtypes of `Inputs`, with the symbols `pairs` for B and `tokens` for T."""
    pairs, tokens = export.symbolic_shape("pairs, tokens")
    made: Inputs = {
        "features": {
            feature.name: jax.ShapeDtypeStruct((pairs, *feature_shape(feature)), DTYPES[feature.kind])
            for feature in features_read(spec)
        }
    }
    if spec.reads_text:
        made["tokens"] = jax.ShapeDtypeStruct((pairs, tokens), jnp.int32)
        made |= {name: jax.ShapeDtypeStruct((pairs,), jnp.int32) for name in ("context_length", "candidate_length")}
    return made


def one_a_row(spec: ModelSpec, layout: Layout, inputs: Inputs) -> PackedBatch:
    """`Inputs` as a batch of B rows with a pair each, as the assembly of batches lays out a single pair."""
    features = {name: x[:, None] for name, x in inputs["features"].items()}
    rows = (inputs["context_length"] if spec.reads_text else next(iter(features.values()))).shape[0]
    for feature in spec.features:
        if feature.fixed is not None:
            value = jnp.zeros(feature_shape(feature), DTYPES[feature.kind])
            features[feature.name] = jnp.broadcast_to(value, (rows, 1, *value.shape))
    of = {
        side: {each.name: features[each.name] for each in spec.features if each.side == side}
        for side in ("context", "candidate")
    }
    zeros = jnp.zeros((rows, 1), jnp.int32)
    batch = PackedBatch(
        tokens=zeros,
        positions=zeros,
        token_types=zeros,
        segment=zeros,
        candidate=zeros,
        context_readout=zeros,
        readout=zeros,
        context_of=zeros,
        group=zeros,
        labels=zeros[..., None].astype(jnp.float32),
        weights=zeros[..., None].astype(jnp.float32),
        context_features=of["context"],
        candidate_features=of["candidate"],
    )
    if not spec.reads_text:
        return batch
    context, candidate = (inputs[f"{side}_length"][:, None] for side in ("context", "candidate"))
    slot = jnp.arange(inputs["tokens"].shape[1], dtype=jnp.int32)[None]
    real = slot < context + candidate
    second = (slot >= context) & real
    start = context if layout.candidate_start is None else layout.candidate_start
    return batch._replace(
        tokens=jnp.where(real, inputs["tokens"], layout.pad_id),
        positions=jnp.where(second, slot - context + start, jnp.where(real, slot, 0)),
        token_types=second * jnp.int32(layout.template.candidate_type if layout.has_context else 0),
        segment=real.astype(jnp.int32),
        candidate=second.astype(jnp.int32),
        readout=context,
    )


def scores(
    graphdef: nnx.GraphDef,
    spec: ModelSpec,
    layout: Layout,
    goals: Objectives,
    params: ctr.Params,
    inputs: Inputs,
) -> dict[str, Any]:
    """What a program returns: `logits` [B, K] float32 and, by task, `scores`: [B] float32 or, of a multiclass task,
    [B, classes]."""
    logits = ctr.forward(graphdef, params, one_a_row(spec, layout, inputs))[:, 0]
    return {"logits": logits, "scores": {made.task.name: made.scores(logits[:, own]) for made, own in goals}}


def exported(
    spec: ModelSpec, compute: Compute, layout: Layout, goals: Objectives, params: Mapping[str, Any]
) -> export.Exported:
    """The program `(params, inputs) -> {"logits", "scores"}` for all of `PLATFORMS`.

    Args:
      compute: how the run computes; its attention is replaced by plain XLA.
      params: as `ctr.init` names them; dtypes are those the program takes, and quantised ones are two arrays.
    """
    graphdef = ctr.build(spec, replace(compute, attention=attend, remat="none"))

    def run(params, inputs):
        return scores(graphdef, spec, layout, goals, from_flat(params), inputs)

    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), flat(params))
    return export.export(jax.jit(run), platforms=PLATFORMS)(given, shapes(spec))
