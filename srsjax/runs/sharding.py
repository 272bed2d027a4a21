"""The mesh, and where every parameter, optimizer state and batch array lives on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.config import Mesh
from srsjax.errors import InputError
from srsjax.model.int8 import Quantized
from srsjax.runs.rules import match

# What of each parameter is divided over `fsdp` and `tensor` (Megatron-style: heads and feed-forward columns first,
# rows second, so that one all-reduce closes each half of a layer). Kernels are [in, out]; qkv is [in, 3, out].
SHARDING: list[tuple[str, Any]] = [
    (r"^lora/.*/a$", P("fsdp", None)),
    (r"^lora/.*/qkv/kernel/b$", P(None, None, "fsdp")),
    (r"^lora/.*/b$", P(None, "fsdp")),
    (r"attention/qkv/kernel$", P("fsdp", None, "tensor")),
    (r"attention/qkv/bias$", P(None, "tensor")),
    (r"attention/out/kernel$", P("tensor", "fsdp")),
    (r"mlp/up/kernel$", P("fsdp", "tensor")),
    (r"mlp/up/bias$", P("tensor")),
    (r"mlp/down/kernel$", P("tensor", "fsdp")),
    # Tables are divided by width, not by row: a row gather then stays local to each device.
    (r"embeddings/(token|position|token_type)/embedding$", P(None, ("fsdp", "tensor"))),
    (r"pooler/kernel$", P("fsdp", "tensor")),
    # Of a large table each device holds some rows, of a small one part of the width.
    (r"^features/.*/embedding$", (P(("fsdp", "tensor"), None), P(None, ("fsdp", "tensor")))),
    (r"^(features|combine)/.*/kernel$", P("fsdp", "tensor")),
    (r"^head/dense/kernel$", P()),
    (r"^head/(levels/.*|context|candidate)/kernel$", P("fsdp", "tensor")),
    (r"(^|/)(bias|scale)$", P()),
    (r"^(features|combine)/.*/(missing|place|query)$", P()),
    (r"^log_variance$", P()),
]

ROWS = ("data", "fsdp")
"""The axes over which the rows of a batch are divided."""

MOST_REPLICATED = 0.02
"""With fsdp > 1, the largest share of parameter bytes that may be left whole on every device."""


def make_mesh(config: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A `data, fsdp, tensor` mesh over `devices` (default all). Raises InputError where the sizes do not fit."""
    sizes = [config.data, config.fsdp, config.tensor]
    available = len(devices) if devices is not None else jax.device_count()
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise InputError(f"mesh: found {_say(sizes)}, expected sizes of at least 1 and at most one -1")
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(available // known, 1)
    if math.prod(sizes) != available:
        raise InputError(
            f"mesh: {_say(sizes)} is {math.prod(sizes)} devices, found {available} {jax.default_backend()} device(s)"
        )
    axis_types = (AxisType.Auto,) * 3  # the compiler propagates shardings; make_mesh itself defaults to Explicit
    return jax.make_mesh(tuple(sizes), ("data", "fsdp", "tensor"), axis_types=axis_types, devices=devices)


def parameter_shardings(mesh: jax.sharding.Mesh, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, NamedSharding]:
    """Where each parameter lives. A dimension that its axes do not divide stays whole.

    Raises InputError where fsdp > 1 and more than `MOST_REPLICATED` of the bytes would be whole on every device.
    """
    specs = match(SHARDING, shapes, "sharding")
    shardings = {path: NamedSharding(mesh, _choose(mesh, specs[path], shape.shape)) for path, shape in shapes.items()}
    total = sum(_bytes(shape) for shape in shapes.values())
    whole = [path for path in shapes if shardings[path].is_fully_replicated]
    share = sum(_bytes(shapes[path]) for path in whole) / total
    if mesh.shape["fsdp"] > 1 and share > MOST_REPLICATED:
        largest = sorted(whole, key=lambda path: -_bytes(shapes[path]))[:3]
        raise InputError(
            f"mesh.fsdp {mesh.shape['fsdp']}: {share:.1%} of parameter bytes would be whole on every device "
            f"(largest: {', '.join(largest)}), expected at most {MOST_REPLICATED:.0%}; choose sizes that divide the "
            f"widths"
        )
    return shardings


def state_shardings(mesh: jax.sharding.Mesh, parameters: dict[str, NamedSharding], state_shapes):
    """Shardings of any pytree that holds dicts over parameter paths (optimizer moments): as the parameter is.

    A leaf whose last dict key is a parameter path and whose rank matches takes that parameter's sharding; scalars and
    all else (counts) are whole on every device.
    """

    def place(path, leaf):
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        sharding = parameters.get(keys[-1]) if keys else None
        if sharding is not None and keys[0] == "tables":  # one number a row, or as the table (`runs.tables`)
            return NamedSharding(mesh, _fit(mesh, P(*sharding.spec[: leaf.ndim]), leaf.shape))
        if sharding is None or len(sharding.spec) > len(leaf.shape):
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, _fit(mesh, sharding.spec, leaf.shape))

    return jax.tree_util.tree_map_with_path(place, state_shapes)


def quantized_sharding(mesh: jax.sharding.Mesh, sharding: NamedSharding, weight: Quantized) -> Quantized:
    """Where both arrays of a quantised parameter live: divided as the parameter is, as far as they can be."""
    return Quantized(sharding, NamedSharding(mesh, _fit(mesh, sharding.spec, weight.scale.shape)))


def row_divisor(mesh: jax.sharding.Mesh) -> int:
    """The rows of a (micro-)batch must be a multiple of this."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def row_share(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """Which share of the rows of every batch this process reads, and of how many.

    Processes that hold the same rows, because `tensor` goes across them, read the same share. Raises InputError where
    the rows of two processes overlap in part.
    """
    rows = mesh.devices.reshape(row_divisor(mesh), -1)
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(share)) for share in held.values()})
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != len(rows):
        raise InputError(
            f"mesh: with {_say([*mesh.shape.values()])} the {len(held)} processes hold rows that overlap in part; "
            f"choose a mesh.tensor that divides the {len(mesh.local_devices)} devices of a process, or is a multiple"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def put_batch(mesh: jax.sharding.Mesh, batch, row_axis: int):
    """A host's part of a batch as global arrays, `row_axis` divided over `ROWS`; other axes whole."""
    sharding = NamedSharding(mesh, P(*[None] * row_axis, ROWS))
    if sharding.is_fully_addressable:
        leaves, tree = jax.tree.flatten(batch)
        # One call for all arrays: half of a step of a small model is otherwise spent on handing over its input.
        return jax.tree.unflatten(tree, jax.device_put(leaves, sharding))
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), batch)


def put_same(value, sharding: NamedSharding) -> jax.Array:
    """An array that every host holds whole, placed as `sharding` says.

    With several hosts `jax.device_put` would first send it round, to compare.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def batch_target(mesh: jax.sharding.Mesh, batch, row_axis: int, shares: int):
    """Shapes, dtypes and shardings of what `put_batch` makes of a batch like this one, one of `shares` of a step's."""
    sharding = NamedSharding(mesh, P(*[None] * row_axis, ROWS))

    def whole(array) -> jax.ShapeDtypeStruct:
        shape = list(array.shape)
        shape[row_axis] *= shares
        return jax.ShapeDtypeStruct(tuple(shape), array.dtype, sharding=sharding)

    return jax.tree.map(whole, batch)


def _choose(mesh: jax.sharding.Mesh, spec: Any, shape: tuple[int, ...]) -> P:
    """The first of several specs that divides the shape as it says, else the last as far as it goes."""
    options = (spec,) if isinstance(spec, P) else spec
    for option in options[:-1]:
        if _fit(mesh, option, shape) == option:
            return option
    return _fit(mesh, options[-1], shape)


def _fit(mesh: jax.sharding.Mesh, spec: P, shape: tuple[int, ...]) -> P:
    fitted = []
    for size, axes in zip(shape, [*spec, *[None] * (len(shape) - len(spec))], strict=True):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        # The longest prefix of the axes that divides the dimension.
        while names and size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        fitted.append(names if len(names) > 1 else (names[0] if names else None))
    return P(*fitted)


def _bytes(shape: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize


def _say(sizes: list[int]) -> str:
    return f"data {sizes[0]}, fsdp {sizes[1]}, tensor {sizes[2]}"
