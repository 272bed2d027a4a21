"""How XLA's CPU backend multiplies: read from the compiled training step, so that a slow form shows without a clock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from srsjax.config import Mesh, Model
from srsjax.runs.sharding import put_batch

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
pytestmark = pytest.mark.skipif(
    not re.search(r"\b(avx512_bf16|amx_bf16)\b", CPU), reason="a CPU without bfloat16 products"
)


class Product(NamedTuple):
    """A dot of the compiled program."""

    operands: tuple[str, str]
    result: str
    axes: int
    """Of the result."""
    fused: bool
    """Whether XLA's kernel library computes it, not its generic code."""


def products(program: str) -> list[Product]:
    """Every dot in the text of a compiled program."""
    fast = set(re.findall(r"kind=kCustom, calls=%([\w.-]+),.*?__ynn_fusion", program))
    found = []
    for computation in re.split(r"\n(?=%|ENTRY)", program):
        name = re.match(r"(?:ENTRY )?%([\w.-]+)", computation)
        types = dict(re.findall(r"%([\w.-]+) = (\w+)\[", computation))
        for result, axes, a, b in re.findall(r" = (\w+)\[([\d,]*)\]\S* dot\(%([\w.-]+), %([\w.-]+)\)", computation):
            found.append(
                Product((types[a], types[b]), result, axes.count(",") + 1, name is not None and name[1] in fast)
            )
    return found


@pytest.fixture(scope="module")
def compiled():
    """`compiled(problem)`: the products of a bfloat16 training step of two layers, compiled once."""
    found: list[Product] = []

    def compile(problem) -> list[Product]:
        if not found:
            sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "intermediate_size": 128, "max_positions": 64}
            made = problem(mesh=Mesh(1), devices=jax.devices()[:1], model=Model(**sizes, dtype="bfloat16"))
            batch, _ = next(iter(made.batches))
            lowered = made.step.lower(made.state, put_batch(made.session.mesh, batch, row_axis=1))
            found.extend(products(lowered.compile().as_text()))
        return found

    return compile


def test_every_weight_is_multiplied_in_bfloat16_by_the_fast_kernels(problem, compiled):
    """Ten weights, each multiplied forward, for the gradient of its input and for its own: query, key and value
    together, output, up and down of the first layer; query apart (at the read-outs only), key and value, output, up
    and down of the last; the pooler. The head's single output is a vector, not worth a kernel.
    """
    matrices = [product for product in compiled(problem) if product.axes == 2]
    fast = [product for product in matrices if product.fused]
    assert (len(fast), len(matrices) - len(fast)) == (30, 2)
    assert {(product.operands, product.result) for product in fast} == {(("bf16", "bf16"), "f32")}


def test_attention_is_multiplied_by_the_fast_kernels(problem, compiled):
    """Scores and sums of values, and the gradients of both operands of each, in two layers."""
    attention = [product for product in compiled(problem) if product.axes == 4]
    assert [product.fused for product in attention] == [True] * 12
