"""Checksums of arrays, by the parts that devices hold, so that they can be checked on any mesh."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from srsjax.hardware import usable_cores


def described(tree: Any) -> dict[str, dict[str, Any]]:
    """Of every array its dtype, shape and the CRC-32 of its parts, as JSON by its path in the tree.

    A part is named by its bounds, `0:4,0:8`. Of parts that several devices hold one has the checksum; with several
    processes each describes what it holds (`merged`).
    """
    leaves = dict(_leaves(tree))
    with ThreadPoolExecutor(usable_cores(), "checksums") as pool:
        found = pool.map(lambda array: {name: _crc(part) for name, part in _own_parts(array)}, leaves.values())
        return {
            path: {"dtype": str(array.dtype), "shape": list(array.shape), "parts": parts}
            for (path, array), parts in zip(leaves.items(), found, strict=True)
        }


def merged(found: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What all processes described, together."""
    return {
        path: first | {"parts": {name: crc for each in found for name, crc in each[path]["parts"].items()}}
        for path, first in found[0].items()
    }


def misfits(tree: Any, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paths of arrays, or of what stands for them, that have another shape or dtype than `described` says, or are only
    in one of the two."""
    found = {path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in _leaves(tree)}
    known = {path: (each["shape"], each["dtype"]) for path, each in expected.items()}
    return [path for path in dict.fromkeys([*found, *known]) if found.get(path) != known.get(path)]


def damaged(tree: Any, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paths of the arrays that are not those that `described` saw, as far as this process holds their parts."""
    leaves = dict(_leaves(tree))
    with ThreadPoolExecutor(usable_cores(), "checksums") as pool:
        whole = pool.map(lambda path: _is_whole(leaves[path], expected[path]["parts"]), leaves)
        return [path for path, good in zip(leaves, whole, strict=True) if not good]


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _own_parts(array: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The parts of an array that this process describes, by their names."""
    if not isinstance(array, jax.Array):
        yield _part_name((slice(None),) * np.ndim(array), np.shape(array)), np.asarray(array)
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield _part_name(shard.index, array.shape), jax.device_get(shard.data)


def _is_whole(array: Any, parts: Mapping[str, int]) -> bool:
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        host = np.asarray(jax.device_get(array))
        return all(_crc(host[_bounds(name)]) == crc for name, crc in parts.items())
    held = {_part_name(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    return all(_crc(jax.device_get(held[name])) == crc for name, crc in parts.items() if name in held)


def _part_name(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop, _ in bounds)


def _bounds(name: str) -> tuple[slice, ...]:
    return tuple(slice(*map(int, each.split(":"))) for each in name.split(",") if each)


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
