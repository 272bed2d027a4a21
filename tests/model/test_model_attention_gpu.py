"""What the cuDNN backend asks of a GPU, read from the program lowered for one; there is no GPU where this runs."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from srsjax.config import Mesh
from srsjax.model.attention import Visibility
from srsjax.model.attention_choice import packed_ids
from srsjax.model.attention_gpu import Cudnn
from srsjax.runs.sharding import make_mesh

ROWS, TOKENS, HEADS = 8, 64, 4


@pytest.fixture
def hopper(monkeypatch):
    """JAX believes that there is a Hopper GPU with cuDNN 9.12."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")


def lowered(mesh: Mesh, interaction: str) -> list[str]:
    """The calls to cuDNN in the gradient of attention."""
    backend = Cudnn(make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]))
    visibility = getattr(Visibility, interaction)(*map(jnp.array, packed_ids(ROWS, TOKENS)))
    operand = jax.ShapeDtypeStruct((ROWS, TOKENS, HEADS, 16), jnp.bfloat16)

    def total(query, key, value):
        return backend(query, key, value, visibility).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(total, (0, 1, 2))).trace(operand, operand, operand)
    text = program.lower(lowering_platforms=("cuda",)).as_text()
    return [line for line in text.splitlines() if "custom_call @__cudnn" in line]


@pytest.mark.parametrize("interaction", ["cross", "shared"])
@pytest.mark.parametrize("mesh", [Mesh(1), Mesh(2, 2, 2)], ids=["one", "mixed"])
def test_both_passes_take_the_mask_of_the_rows_of_a_device(hopper, mesh, interaction):
    forward, backward = lowered(mesh, interaction)
    rows, heads = ROWS // (mesh.data * mesh.fsdp), HEADS // mesh.tensor
    for call, name in ((forward, "fmhaScaleBiasSoftmax("), (backward, "fmhaScaleBiasSoftmaxBackward(")):
        assert f"@__cudnn${name}" in call
        operands = re.search(r" : \((.*)\) -> ", call).group(1)
        assert operands.count(f"tensor<{rows}x1x{TOKENS}x{TOKENS}xbf16>") == 1
        assert operands.count(f"tensor<{rows}x{TOKENS}x{heads}x16xbf16>") >= 3


def test_attention_dropout_is_refused():
    backend = Cudnn(make_mesh(Mesh(1), jax.devices()[:1]))
    visibility = Visibility.shared(*map(jnp.array, packed_ids(2, TOKENS)))
    x = jnp.zeros((2, TOKENS, 2, 8))
    with pytest.raises(NotImplementedError, match="no attention dropout"):
        backend(x, x, x, visibility, 0.1, jax.random.key(0))
