"""cuDNN's fused attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from srsjax.model.attention import Fused, Visibility, on_mesh


@dataclass(frozen=True)
class Cudnn(Fused):
    """`attend` by cuDNN on the devices of `mesh`, in bfloat16 or float16.

    Visibility goes in as a mask, the same for all heads. cuDNN's other way, offsets of the sequences packed into a row,
    is not public in JAX and cannot say "my part or my context".

    This has been compiled to cuDNN's calls, but has not run on a GPU yet: `attention_choice` compares it with the
    reference on the devices of each run.

    Attention dropout is refused because cuDNN's takes its seed when it is compiled: the same mask in every step. Rows
    of odd length and float32 raise NotImplementedError too.
    """

    mesh: jax.sharding.Mesh
    name = "cuDNN attention"

    def kernel(self, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
        return on_mesh(_cudnn, self.mesh)(query, key, value, visibility)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    seen = visibility.mask()[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=seen, implementation="cudnn")
