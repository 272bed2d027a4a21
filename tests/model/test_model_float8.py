"""Products in float8: as exact as the format, scaled by their own token, and wherever the encoder has a weight."""

import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from test_model_packing import pack, three_pairs

from srsjax import config
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.model.bert import BertConfig
from srsjax.model.dense import contract
from srsjax.model.float8 import check_float8, float8_dot

ROWS, TOKENS, IN, OUT = 3, 5, 64, 48
E4M3, E5M2 = 2.0**-4, 2.0**-3
"""Largest relative error of a rounding: half a unit in the last of 3 and 2 bits."""


def operands() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, a kernel and the gradient of their product, of sizes far outside of what float8 holds unscaled."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = 1e4 * jax.random.normal(keys[0], (ROWS, TOKENS, IN), jnp.bfloat16)
    kernel = 1e-5 * jax.random.normal(keys[1], (IN, OUT))
    return x.at[1, 2].set(0), kernel, 1e-8 * jax.random.normal(keys[2], (ROWS, TOKENS, OUT), jnp.bfloat16)


def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return contract("rli,io->rlo", x, kernel, float8_dot)


def assert_rounded(found: jax.Array, spec: str, a, b, relative: tuple[float, float]) -> None:
    """`found` is the product of operands whose elements were rounded with these relative errors, and no worse.

    An element smaller than 2^-6 (e4m3) or 2^-14 (e5m2) of the format is subnormal: its error is absolute, at most
    2^-10 of 448, or 2^-17 of 57344, times the largest of its vector. The first is counted for all.
    """
    a, b = (np.asarray(array.astype(jnp.bfloat16), np.float64) for array in (a, b))
    inputs, out = spec.split("->")
    a_spec, b_spec = inputs.split(",")
    kept = [{axis for axis in operand if axis in out} for operand in (a_spec, b_spec)]
    largest = [
        np.abs(array).max(tuple(i for i, axis in enumerate(spec) if axis not in keep), keepdims=True)
        for array, spec, keep in zip((a, b), (a_spec, b_spec), kept, strict=True)
    ]
    errors = [
        size * np.abs(array) + top * 2.0**-10 / 448 for array, top, size in zip((a, b), largest, relative, strict=True)
    ]
    bound = np.einsum(spec, np.abs(a) + errors[0], np.abs(b) + errors[1]) - np.einsum(spec, np.abs(a), np.abs(b))
    # What is left: scales, the sum and the result in float32, or the result in bfloat16 (2^-9).
    off = np.abs(np.asarray(found, np.float64) - np.einsum(spec, a, b))
    assert (off <= bound + 2.0**-8 * np.einsum(spec, np.abs(a), np.abs(b))).all()


def test_the_product_and_its_gradients_are_within_the_rounding_of_the_format():
    x, kernel, gradient = operands()
    made, pull = jax.vjp(multiply, x, kernel)
    assert made.dtype == jnp.float32
    assert (made[1, 2] == 0).all()
    assert_rounded(made, "rli,io->rlo", x, kernel, (E4M3, E4M3))
    to_x, to_kernel = pull(gradient.astype(jnp.float32))
    assert (to_x.dtype, to_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    assert_rounded(to_x, "rlo,io->rli", gradient, kernel, (E5M2, E4M3))
    assert_rounded(to_kernel, "rli,rlo->io", x, gradient, (E4M3, E5M2))


def test_a_token_is_scaled_by_itself():
    """So that a pair's logits do not depend on the pairs it is packed with."""
    x, kernel, _ = operands()
    alone = multiply(x, kernel)
    beside = multiply(x.at[0].mul(1000), kernel)
    np.testing.assert_array_equal(alone[1:], beside[1:])


def test_every_weight_of_the_encoder_is_multiplied_in_float8_and_nothing_else():
    """Query, key and value together, output, up, down in the first layer; query apart, key and value, output, up, down
    in the last, which computes read-outs only. Each forward, for its input and for itself."""
    bert = BertConfig(200, 16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=32)
    model, batch = config.Model(dtype="float8"), pack([three_pairs(), []])
    params = models.init(model, bert, 1, jax.random.key(0))
    graphdef = models.build(model, bert, 1)
    gradients = jax.jit(jax.grad(lambda params: ctr.forward(graphdef, params, batch).sum()))
    # Layers are functions of the program, each written once: the last, and the one that stands for the others.
    program = gradients.lower(params).as_text()
    dots = re.findall(r"dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)", program)
    eights = Counter(pair for pair in dots if "f8" in "".join(pair))
    assert eights == {("f8E4M3FN", "f8E4M3FN"): 9, ("f8E5M2", "f8E4M3FN"): 9, ("f8E4M3FN", "f8E5M2"): 9}


@pytest.mark.parametrize(("platform", "capability"), [("gpu", "8.0"), ("gpu", "gfx942"), ("tpu", None)])
def test_devices_without_float8_are_refused(platform, capability):
    device = SimpleNamespace(platform=platform, device_kind="a device")
    if capability:
        device.compute_capability = capability
    with pytest.raises(InputError, match="a device has no float8 products; set it to bfloat16"):
        check_float8(device)
    check_float8(SimpleNamespace(platform="gpu", device_kind="H100", compute_capability="9.0"))
    check_float8(jax.devices()[0])
