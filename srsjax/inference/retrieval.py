"""Exact retrieval: the top k inner products of queries with all item vectors, on the devices of a mesh.

The vectors are divided over all devices by rows. Each device goes through its part a block at a time and keeps the best
k so far, so that memory is that of one block of scores; the devices' lists are then merged. Blocks, batches of queries
and k come in few sizes, each compiled once.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.runs.sharding import put_same

BLOCK = 8192
"""Items scored at a time on a device."""
QUERIES = (1, 8, 64)
"""Queries at a time; a batch is filled up to the next of them."""
LEAST_K = 16
"""The smallest k that is compiled; others are 4, 16, ... times it."""


class ExactIndex:
    """All item vectors on the devices, and the exact top k of them for any query. Safe to call from several threads."""

    def __init__(self, vectors: np.ndarray, mesh: jax.sharding.Mesh, block: int = BLOCK):
        """Puts the vectors on the devices.

        Args:
          vectors: [V, D] float32 or bfloat16, V at least 1.
          mesh: they are divided over all its axes.
          block: items scored at a time on a device.
        """
        count, width = vectors.shape
        if not count:
            raise ValueError("no vectors to search")
        devices = mesh.size
        block = min(block, -(-count // devices))
        blocks = -(-count // (block * devices)) * devices
        whole = np.zeros((blocks * block, width), vectors.dtype)
        whole[:count] = vectors
        by_device = P(mesh.axis_names)
        self._count, self._mesh = count, mesh
        self._vectors = put_same(whole.reshape(blocks, block, width), NamedSharding(mesh, by_device))
        self._first = put_same(np.arange(blocks, dtype=np.int32) * block, NamedSharding(mesh, by_device))

    def __len__(self) -> int:
        return self._count

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The items of the k largest inner products with each query, the largest first, equal ones in item order.

        Args:
          queries: [Q, D] float32.
          k: at least 1; with fewer items than that, all are returned.

        Returns:
          Inner products [Q, min(k, V)] float32, computed in float32, and rows of the vectors, int64 alike.
        """
        if k < 1:
            raise ValueError(f"k: found {k}, expected at least 1")
        k = min(k, self._count)
        size = next(size for size in self._sizes() if size >= k)
        most = QUERIES[-1]
        parts = [self._part(queries[at : at + most], size) for at in range(0, len(queries), most)]
        if not parts:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        scores, rows = (np.concatenate(each)[:, :k] for each in zip(*parts, strict=True))
        return scores, rows.astype(np.int64)

    def warm_up(self, most: int) -> list[int]:
        """Compiles the programs for every number of queries and every k up to `most`; returns the sizes of k."""
        ahead = self._sizes()
        sizes = ahead[: 1 + sum(size < min(most, self._count) for size in ahead)]
        for size in sizes:
            for count in QUERIES:
                self._part(np.zeros((count, self._vectors.shape[2]), np.float32), size)
        return sizes

    def _sizes(self) -> list[int]:
        """The values of k that are compiled, the last of them V."""
        sizes, size = [], LEAST_K
        while size < self._count:
            sizes.append(size)
            size *= 4
        return [*sizes, self._count]

    def _part(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = next(count for count in QUERIES if count >= len(queries))
        padded = np.zeros((rows, queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        found = _jit_search(self._mesh, k)(padded, self._vectors, self._first, np.int32(self._count))
        scores, items = jax.device_get(found)
        return scores[: len(queries)], items[: len(queries)]


@cache
def _jit_search(mesh: jax.sharding.Mesh, k: int):
    """(queries [Q, D], vectors [B, block, D], first [B], V) -> products [Q, k] and rows [Q, k], whole everywhere."""
    whole, by_device = P(), P(mesh.axis_names)
    mapped = jax.shard_map(
        partial(_device_top_k, k=k, axes=mesh.axis_names),
        mesh=mesh,
        in_specs=(whole, by_device, by_device, whole),
        out_specs=(whole, whole),
        check_vma=False,  # equal on all devices after the gather, which the check cannot see
    )
    replicated = NamedSharding(mesh, whole)
    return jax.jit(mapped, out_shardings=(replicated, replicated))


def _device_top_k(queries, vectors, first, count, *, k, axes):
    """The best k of all devices, from one device's [B, block, D]; `first` [B] is the row of each block's first item."""

    def step(best, block):
        (scores, rows), (vectors, first) = best, block
        own = first + jnp.arange(len(vectors), dtype=jnp.int32)
        products = jnp.matmul(queries, vectors.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)
        products = jnp.where(own < count, products, -jnp.inf)
        rows = jnp.concatenate([rows, jnp.broadcast_to(own, products.shape)], axis=1)
        # `top_k` puts equal ones in the order given: earlier blocks, whose items come first, are given first.
        scores, at = jax.lax.top_k(jnp.concatenate([scores, products], axis=1), k)
        return (scores, jnp.take_along_axis(rows, at, axis=1)), None

    empty = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), count, jnp.int32))
    (scores, rows), _ = jax.lax.scan(step, empty, (vectors, first))
    scores, rows = (jax.lax.all_gather(each, axes, axis=1, tiled=True) for each in (scores, rows))
    scores, at = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(rows, at, axis=1)
