"""Products with weights in float8, which Ada and Hopper GPUs and later ones multiply twice as fast as bfloat16.

Formats as in Micikevicius et al. 2022, "FP8 Formats for Deep Learning": activations and weights in e4m3, gradients in
e5m2, whose range is wider. Every vector that a product sums over is scaled by its own largest magnitude, so that no
token's result depends on the strangers it is packed with. Quantisation is qwix's.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from srsjax.errors import InputError
from srsjax.model.dense import Dimensions

OLDEST_GPU = (8, 9)
"""Compute capability from which NVIDIA's matrix units take float8."""


def check_float8(device: jax.Device) -> None:
    """Raises InputError for a device that has no float8, or where qwix is not installed.

    CPUs pass: they compute it by conversion, slowly, which is enough to try what it does to a model.
    """
    version = re.fullmatch(r"(\d+)\.(\d+)", getattr(device, "compute_capability", ""))  # NVIDIA's
    if device.platform != "cpu" and (version is None or tuple(map(int, version.groups())) < OLDEST_GPU):
        raise InputError(f"model.dtype float8: {device.device_kind} has no float8 products; set it to bfloat16")
    if importlib.util.find_spec("qwix") is None:
        raise InputError("model.dtype float8: needs qwix; pip install 'srsjax[float8]'")


def float8_dot(a: jax.Array, b: jax.Array, dimensions: Dimensions, gradient: int | None = None) -> jax.Array:
    """The `Dot` of products in float8."""
    import qwix  # an extra, and a second to import

    def quantized(x: jax.Array, summed: Sequence[int], is_gradient: bool) -> qwix.QArray:
        kept = [axis for axis in range(x.ndim) if axis not in summed]
        kind = jnp.float8_e5m2 if is_gradient else jnp.float8_e4m3fn
        return qwix.quantize(x.astype(jnp.float32), kind, channelwise_axes=kept)

    a_summed, b_summed = dimensions[0]
    a8, b8 = quantized(a, a_summed, gradient == 0), quantized(b, b_summed, gradient == 1)
    return qwix.dot_general(a8, b8, dimensions, preferred_element_type=jnp.float32)
