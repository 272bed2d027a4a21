"""Splash attention, JAX's Pallas kernel for TPU: scores and probabilities [R, H, L, L] never leave a core's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from srsjax.model.attention import Fused, Visibility, on_mesh

LANES = 128
"""Width of a TPU vector register: blocks are multiples of it, and rows are padded to one."""

BLOCKS = (512, 384, 256, 128)
"""Tokens of a block, the first that divides the row."""


@dataclass(frozen=True)
class Splash(Fused):
    """`attend` by splash attention on the devices of `mesh`.

    Visibility by part alone goes in as segment ids. The kernel knows one id a token, which cannot say "my part or my
    context", so visibility with a context goes in as a mask of one entry a pair of tokens, the same for all heads.
    """

    mesh: jax.sharding.Mesh
    interpret: bool = False
    """Run the kernel's program as plain XLA, on any device and slowly: for tests."""

    name = "splash attention"

    def kernel(self, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
        tokens = key.shape[1]
        query, key, value = (_pad(x) for x in (query * query.shape[-1] ** -0.5, key, value))
        return on_mesh(self._splash, self.mesh)(query, key, value, jax.tree.map(_pad, visibility))[:, :tokens]

    def _splash(self, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
        """[R, L, H, Dh] three times, the query scaled -> [R, L, H, Dh]."""
        block = next(block for block in BLOCKS if key.shape[1] % block == 0)

        def row(query, key, value, ids, seen):
            return self._kernel(block, seen)(query, key, value, ids)

        if visibility.query_context is None:
            ids, seen = splash.SegmentIds(visibility.query, visibility.key), None
        else:
            ids, seen = None, visibility.mask()
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        return jax.vmap(row)(query, key, value, ids, seen).swapaxes(1, 2)

    def _kernel(self, block: int, seen: jax.Array | None) -> splash.SplashAttentionKernel:
        """The kernel of one row, where `seen` [L, L] bool is the mask."""
        forward = backward = MaskInfo(None, None, None, None, None)
        if seen is not None:
            forward, backward = _mask_info(seen, block)
        sizes = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
        blocks: dict[str, Any] = dict.fromkeys(sizes, block)
        return splash.SplashAttentionKernel(
            forward,
            forward,
            backward,
            block_sizes=splash.BlockSizes(**blocks),
            is_mqa=False,
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=None,
            mask_function=None,
            interpret=self.interpret,
        )


def _mask_info(seen: jax.Array, block: int) -> tuple[MaskInfo, MaskInfo]:
    """[L, L] bool as the kernel wants it: cut into blocks, none of which is skipped; for queries, and for the gradients
    of keys and values, whose blocks are transposed.

    `process_dynamic_mask` would also find the blocks to skip, but as arrays that differ from row to row, which turn
    `vmap` into a loop over rows.
    """
    n = seen.shape[0] // block
    blocks = seen.reshape(n, block, n, block).swapaxes(1, 2).reshape(n * n, block, block)
    query, key = (index[None].astype(np.int32) for index in np.indices((n, n)))
    partial = np.ones((1, n, n), np.int32)
    return (
        MaskInfo(key, query * n + key, partial, blocks, None),
        MaskInfo(query, query * n + key, partial, blocks.swapaxes(1, 2), None),
    )


def _pad(x: jax.Array) -> jax.Array:
    """[R, L, ...] with L rounded up to whole registers; ids of 0 make the new tokens padding."""
    return jnp.pad(x, [(0, -x.shape[1] % LANES if axis == 1 else 0) for axis in range(x.ndim)])
