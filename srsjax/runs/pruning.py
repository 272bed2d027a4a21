"""Encoders with fewer layers: which layers to keep, and what is left of the parameters.

A pruned encoder is worse than one that was trained as it is; a short training on its weights makes most of it good
(Sajjad et al. 2023, "On the effect of dropping layers of pre-trained transformer models"). There, of six ways, leaving
out the top layers loses least.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from srsjax.errors import InputError
from srsjax.model.spec import ModelSpec

Drop = Literal["top", "alternate", "measured"]
"""Which layers are left out."""
LAYER = re.compile(r"^bert/layers/(\d+)/")


def kept_layers(count: int, keep: int, drop: Drop, error: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The layers to keep of `count`, in their order.

    `top` keeps the lowest; `alternate` leaves out every other one, from the top down, then the top ones; `measured`
    leaves out one after the other, each time the one without which `error` (kept layers -> how far the logits of a
    sample are from those of all layers) is smallest.

    Raises InputError where there are not more than `keep` layers, or `keep` is below 1.
    """
    if not 1 <= keep < count:
        raise InputError(f"--layers: found {keep}, expected 1 to {count - 1}: the encoder has {count} layers")
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
