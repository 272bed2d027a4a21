"""Matrix products in the compute dtype with float32 accumulation, and the dense layer made of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum(spec, a, b)` with operands in `a.dtype`, accumulated and returned in float32.

    Its gradient is its own because the derivative of a product with a float32 result would multiply a float32
    cotangent by the bfloat16 operand, in float32 and at a fraction of the speed. Here the cotangent is cast to
    `a.dtype` first; the gradients have the dtypes of `a` and `b`, so that a float32 kernel gets a float32 gradient.

    Args:
      spec: two operands with explicit letters, each letter of an operand in the other operand or the output.
      a: float32 or bfloat16.
      b: any float dtype; cast to `a.dtype`.
    """
    return _einsum(spec, a, b.astype(a.dtype))


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.einsum` with float32 result that sums over axes in the order of `a`: jnp.einsum reverses them where there
    are two, which costs a transposed copy of both operands."""
    inputs, out = spec.split("->")
    a_axes, b_axes = inputs.split(",")
    shared = [axis for axis in a_axes if axis in b_axes]
    summed, batch = [x for x in shared if x not in out], [x for x in shared if x in out]
    dimensions = tuple(tuple([x.index(axis) for axis in axes] for x in (a_axes, b_axes)) for axes in (summed, batch))
    result = jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
    made = batch + [x for x in a_axes + b_axes if x not in shared]
    return result.transpose([made.index(axis) for axis in out])


def _contract_forward(spec, a, b):
    return contract(spec, a, b), (a, b)


def _contract_backward(spec, operands, gradient):
    a, b = operands
    inputs, out = spec.split("->")
    a_spec, b_spec = inputs.split(",")
    gradient = gradient.astype(a.dtype)
    to_a = _einsum(f"{out},{b_spec}->{a_spec}", gradient, b.astype(a.dtype))
    to_b = _einsum(f"{a_spec},{out}->{b_spec}", a, gradient)
    return to_a.astype(a.dtype), to_b.astype(b.dtype)


contract.defvjp(_contract_forward, _contract_backward)


class Dense(nnx.Module):
    """y = x W + b; kernel [in, out] and bias [out] are float32, the product runs in the dtype of `x`."""

    def __init__(self, size_in: int, size_out: int, stddev: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), (size_in, size_out)))
        self.bias = nnx.Param(jnp.zeros(size_out))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[R, L, in] -> [R, L, out], dtype of `x`."""
        return (contract("rli,io->rlo", x, self.kernel[...]) + self.bias[...]).astype(x.dtype)
