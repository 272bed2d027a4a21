"""cuDNN's fused attention on NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from srsjax.model.attention import Visibility, attend, on_mesh


@dataclass(frozen=True)
class Cudnn:
    """`attend` by cuDNN on the devices of `mesh`, in bfloat16 or float16.

    Visibility goes in as a mask, the same for all heads. cuDNN's other way, offsets of the sequences packed into a row,
    is not public in JAX and cannot say "my part or my context".

    This has been compiled to cuDNN's calls, but has not run on a GPU yet: `attention_choice` compares it with the
    reference on the devices of each run.
    """

    mesh: jax.sharding.Mesh

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        visibility: Visibility,
        dropout_rate: float = 0.0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """As `attend`; queries at some slots only (the last layer) are few and take plain XLA.

        Raises NotImplementedError for attention dropout (cuDNN's takes its seed when compiled: the same mask in every
        step) and for what cuDNN does not do (float32, rows of odd length).
        """
        if dropout_key is not None and dropout_rate > 0:
            raise NotImplementedError("cuDNN attention has no attention dropout here")
        if query.shape[1] != key.shape[1]:
            return attend(query, key, value, visibility)
        return on_mesh(_rows, self.mesh)(query, key, value, visibility)


def _rows(query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    seen = visibility.mask()[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=seen, implementation="cudnn")
