"""Matrix products in the compute dtype with float32 accumulation, and the dense layer made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from srsjax.cpu import on_cpu, small_first
from srsjax.model.int8 import Dimensions, Quantized, int8_dot

PRODUCT = "product"
"""Name of what `product` returns."""


class Dot(Protocol):
    """How two arrays are multiplied; the result is float32."""

    def __call__(self, a: jax.Array, b: jax.Array, dimensions: Dimensions, gradient: int | None = None) -> jax.Array:
        """`jax.lax.dot_general`; `gradient` is the operand (0 or 1) that is a gradient, None where neither is."""


def plain_dot(a: jax.Array, b: jax.Array, dimensions: Dimensions, gradient: int | None = None) -> jax.Array:
    """A product in the dtype of its operands."""
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def contract(spec: str, a: jax.Array, b: jax.Array | Quantized, dot: Dot = plain_dot) -> jax.Array:
    """`einsum(spec, a, b)` with operands in `a.dtype`, accumulated and returned in float32.

    Its gradient is its own because the derivative of a product with a float32 result would multiply a float32
    cotangent by the bfloat16 operand, in float32 and at a fraction of the speed. Here the cotangent is cast to
    `a.dtype` first; the gradients have the dtypes of `a` and `b`, so that a float32 kernel gets a float32 gradient.

    Args:
      spec: two operands with explicit letters, each letter of an operand in the other operand or the output.
      a: float32 or bfloat16.
      b: any float dtype; cast to `a.dtype`. A quantised weight is multiplied in int8, and has no gradient.
      dot: what multiplies them, and a gradient with each of them.
    """
    if isinstance(b, Quantized):
        return _einsum(spec, a, b, lambda a, b, dimensions, gradient: int8_dot(a, b, dimensions))
    return _contract(spec, a, b, dot)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _contract(spec: str, a: jax.Array, b: jax.Array, dot: Dot) -> jax.Array:
    return _einsum(spec, a, b.astype(a.dtype), dot)


def _einsum(spec: str, a: jax.Array, b: Any, dot: Any = plain_dot, gradient: int | None = None) -> jax.Array:
    """`jnp.einsum` with float32 result that sums over axes in the order of `a`: jnp.einsum reverses them where there
    are two, which costs a transposed copy of both operands."""
    inputs, out = spec.split("->")
    a_axes, b_axes = inputs.split(",")
    shared = [axis for axis in a_axes if axis in b_axes]
    summed, batch = [x for x in shared if x not in out], [x for x in shared if x in out]
    summed_at, batch_at = ((_places(axes, a_axes), _places(axes, b_axes)) for axes in (summed, batch))
    result = dot(a, b, (summed_at, batch_at), gradient)
    made = batch + [x for x in a_axes + b_axes if x not in shared]
    return result.transpose([made.index(axis) for axis in out])


def _places(axes: list[str], of: str) -> tuple[int, ...]:
    return tuple(of.index(axis) for axis in axes)


def _contract_forward(spec, a, b, dot):
    return _contract(spec, a, b, dot), (a, b)


def _contract_backward(spec, dot, operands, gradient):
    a, b = operands
    inputs, out = spec.split("->")
    a_spec, b_spec = inputs.split(",")
    gradient = gradient.astype(a.dtype)
    to_a = _einsum(f"{out},{b_spec}->{a_spec}", gradient, b.astype(a.dtype), dot, 0)
    to_b: Callable = functools.partial(_einsum, f"{a_spec},{out}->{b_spec}", dot=dot, gradient=1)
    if set(a_spec) & set(b_spec) & set(out):  # axes of a batch: the products of attention
        to_b = on_cpu(small_first(_einsum, a_spec, out, b_spec), to_b)
    return to_a.astype(a.dtype), to_b(a, gradient).astype(b.dtype)


_contract.defvjp(_contract_forward, _contract_backward)


def product(result: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The result of a product with weights in `dtype`, by a name that a policy of `jax.checkpoint` can keep: it does
    not look into functions with gradients of their own."""
    return checkpoint_name(result.astype(dtype), PRODUCT)


class Dense(nnx.Module):
    """y = x W + b; kernel [in, out] and bias [out] are float32, the product is that of `dot`. In scoring the kernel may
    be `Quantized`."""

    def __init__(self, size_in: int, size_out: int, stddev: float, rngs: nnx.Rngs, dot: Dot = plain_dot):
        self.kernel = nnx.Param(stddev * jax.random.normal(rngs.params(), (size_in, size_out)))
        self.bias = nnx.Param(jnp.zeros(size_out))
        self.dot = dot

    def __call__(self, x: jax.Array) -> jax.Array:
        """[R, L, in] -> [R, L, out], dtype of `x`."""
        return product(contract("rli,io->rlo", x, self.kernel[...], self.dot) + self.bias[...], x.dtype)
