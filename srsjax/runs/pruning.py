"""Encoders with fewer layers or heads: which to keep, and what is left of the parameters.

A pruned encoder is worse than one that was trained as it is; a short training on its weights makes most of it good
(Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer models"). There, of six ways, leaving
out the top layers loses least. Of heads those are left out that change the loss least (Michel, Levy and Neubig 2019,
"Are Sixteen Heads Really Better than One?"), as many in each layer, so that layers stay alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.model.spec import ModelSpec
from srsjax.objectives import losses, objectives
from srsjax.runs.session import Session
from srsjax.runs.sharding import put_batch
from srsjax.runs.steps import loss_batches

Drop = Literal["top", "alternate", "measured"]
"""Which layers are left out."""
LAYER = re.compile(r"^bert/layers/(\d+)/")


def check_keep(part: Literal["layers", "heads"], keep: int, count: int) -> None:
    """Raises InputError where `keep` is below 1, or there are not more of them than that: `count` layers, or heads of a
    layer."""
    if 1 <= keep < count:
        return
    has = f"the encoder has {count} layer" if part == "layers" else f"a layer has {count} head"
    if count == 1:
        raise InputError(f"--{part}: found {keep}, but {has}: there is none to leave out")
    raise InputError(f"--{part}: found {keep}, expected 1 to {count - 1}: {has}s")


def kept_layers(count: int, keep: int, drop: Drop, error: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The layers to keep of `count`, in their order.

    `top` keeps the lowest; `alternate` leaves out every other one, from the top down, then the top ones; `measured`
    leaves out one after the other, each time the one without which `error` (kept layers -> how far the logits of a
    sample are from those of all layers) is smallest.

    Raises InputError as `check_keep`.
    """
    check_keep("layers", keep, count)
    if drop == "top":
        return tuple(range(keep))
    if drop == "alternate":
        others = [*range(count - 2, -1, -2)]
        out = {*others[: count - keep]}
        left = [layer for layer in range(count) if layer not in out]
        return tuple(left[:keep])
    kept = tuple(range(count))
    while len(kept) > keep:
        kept = min((tuple(each for each in kept if each != out) for out in kept), key=error)
    return kept


def pruned(params: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The parameters without the other layers; those kept are numbered anew."""
    number = {layer: place for place, layer in enumerate(kept)}
    made = {}
    for path, value in params.items():
        found = LAYER.match(path)
        if not found:
            made[path] = value
        elif int(found[1]) in number:
            made[f"bert/layers/{number[int(found[1])]}/{path[found.end() :]}"] = value
    return made


def pruned_spec(spec: ModelSpec, kept: Sequence[int]) -> ModelSpec:
    """The model with these layers; of `split`, candidates see themselves alone in those that had it so."""
    split = sum(layer < spec.split_layers for layer in kept)
    return replace(spec, encoder=replace(spec.encoder, num_layers=len(kept)), split_layers=split)


# ---------------------------------------------------------------------------------------------- heads


def head_importance(
    session: Session,
    config: TrainConfig,
    params: Mapping[str, jax.Array],
    split: Split,
    items: Items,
    shape: BatchShape,
) -> np.ndarray:
    """How much the loss depends on each head: [layers, heads] float64.

    A head's output times a mask m, which is 1: the mean of |dL/dm| over examples (Michel et al. 2019, equation 2).
    dL/dm is the sum of W * dL/dW over the head's rows of the output product's weight W [A, D], so that one backward
    pass gives all heads. L is the loss of training, without a teacher and `fairness`. An example is a row of a batch,
    whatever the device; where the loss compares the candidates of a batch it is an evaluation batch.

    Args:
      params: float32, by path, whole on one device.
      split: labelled rows.
      shape: of evaluation batches.
    """
    heads, goals = session.spec.encoder.num_heads, objectives(config.schema.tasks, session.spec.outputs)
    compares = losses.compares_batch(config.schema.tasks)
    forward = partial(ctr.forward_pairs, session.graphdef) if compares else session.forward
    paths = [f"bert/layers/{layer}/attention/out/kernel" for layer in range(session.spec.encoder.num_layers)]

    @jax.jit
    def slopes(params, batch):
        def loss(kernels):
            read: Any = forward({**params, **kernels}, batch)
            logits, pairs = read if compares else (read, None)
            of = (losses.normalisers(goals, batch), params.get("log_variance"), 1.0, pairs)
            return losses.total_loss(goals, logits, batch, *of)

        kernels = {path: params[path] for path in paths}
        moved = jax.tree.map(lambda kernel, slope: kernel * slope, kernels, jax.grad(loss)(kernels))
        return jnp.stack([moved[path].reshape(heads, -1).sum(1) for path in paths])

    sizes = {"rows": shape.eval_rows if compares else 1, "tokens": shape.tokens, "candidates": shape.candidates}
    config = replace(config, batch=replace(config.batch, **sizes, micro_batches=1, workers=0))
    batches = loss_batches(config, split, items, shape.layout)
    total = np.zeros((len(paths), heads))
    for packed, _ in batches:
        batch = put_batch(session.mesh, jax.tree.map(lambda array: array[0], packed), row_axis=0)
        total += np.abs(np.asarray(slopes(params, batch), np.float64))
    return total / len(batches)


def kept_heads(importance: np.ndarray, keep: int) -> list[list[int]]:
    """The `keep` most important heads of each layer, in their order, of `importance` [layers, heads].

    Raises InputError as `check_keep`.
    """
    check_keep("heads", keep, importance.shape[1])
    return [sorted(np.argsort(-of_layer, kind="stable")[:keep].tolist()) for of_layer in importance]


def without_heads(params: Mapping[str, Any], kept: Sequence[Sequence[int]], width: int) -> dict[str, Any]:
    """The parameters without the other heads, which are of that width; `kept` by layer."""
    made = dict(params)
    for layer, heads in enumerate(kept):
        columns = (np.array(heads)[:, None] * width + np.arange(width)).ravel()
        here = f"bert/layers/{layer}/attention"
        for path, axis in ((f"{here}/qkv/kernel", 2), (f"{here}/qkv/bias", 1), (f"{here}/out/kernel", 0)):
            made[path] = np.take(np.asarray(params[path]), columns, axis)
    return made


def spec_without_heads(spec: ModelSpec, keep: int) -> ModelSpec:
    """The model with so many heads in each layer, as wide as they were."""
    return replace(spec, encoder=replace(spec.encoder, num_heads=keep, head_size=spec.encoder.head_width))
