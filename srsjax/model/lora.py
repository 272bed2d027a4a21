"""Low-rank adapters of the encoder's kernels (LoRA, Hu et al. 2021): W + 2 A B with A [in, r] and B [r, out] trained
and W as it was pre-trained.

Adapters are parameters beside the kernel's own, `lora/<kernel>/a` and `lora/<kernel>/b`, and are added to it where the
model is called (`srsjax.model.ctr.merge`). A finished run is loaded with its sums alone: scoring, export and
compression know nothing of adapters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

ADAPTED = re.compile(r"^bert/layers/\d+/.*/kernel$")
"""Paths of the kernels with adapters: attention and feed-forward network of every layer. Of query, key and value, one
kernel [in, 3, out], A is shared."""
SCALE = 2.0
"""What A B is multiplied by: alpha / r of the paper, with alpha twice the rank as is usual. With Adam it acts like the
learning rate."""
FROZEN = r"^bert/"
"""What is not trained beside adapters: all of the encoder."""


def init(params: Mapping[str, jax.Array], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """Fresh adapters for these parameters, float32: A normal with variance 1 / in, B zero, so that the model is as
    before."""
    made = {}
    for number, path in enumerate(sorted(filter(ADAPTED.match, params))):
        first, *rest = params[path].shape
        made[f"lora/{path}/a"] = first**-0.5 * jax.random.normal(jax.random.fold_in(key, number), (first, rank))
        made[f"lora/{path}/b"] = jax.numpy.zeros((rank, *rest))
    return made


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without adapters, each added to its kernel; the same arrays where there are none. Arrays of JAX or
    NumPy, [in, ...] float32."""
    made = {path: array for path, array in params.items() if not path.startswith("lora/")}
    for path in params:
        if path.startswith("lora/") and path.endswith("/a"):
            kernel, b = path.removeprefix("lora/").removesuffix("/a"), params[path.removesuffix("a") + "b"]
            change = params[path] @ b.reshape(len(b), math.prod(b.shape[1:]))
            made[kernel] = made[kernel] + np.float32(SCALE) * change.reshape(made[kernel].shape)
    return made
