"""Splash attention: its program against the reference on CPU, and compiled ahead of time for a real TPU."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from batches import make_batch

from srsjax.config import Mesh, Model
from srsjax.data.batches.batch import PackedBatch
from srsjax.model import ctr
from srsjax.model.attention import Visibility, attend, reference
from srsjax.model.attention_choice import packed_ids
from srsjax.model.attention_tpu import Splash
from srsjax.model.bert import BertConfig
from srsjax.runs.sharding import make_mesh


@functools.cache
def splash(mesh: Mesh = Mesh(1)) -> Splash:
    devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
    return Splash(make_mesh(mesh, devices), interpret=True)


def values_and_gradients(attention, operands, visibility):
    """Outputs at real tokens, and the gradients of their product with fixed numbers."""
    towards = jax.random.normal(jax.random.key(9), operands[0].shape)

    def product(*operands):
        out = attention(*operands, visibility).astype(jnp.float32)
        real = jnp.where(visibility.query[:, :, None, None] != 0, out, 0)
        return (real * towards).sum(), (real, jnp.isfinite(out).all())

    run = jax.jit(jax.value_and_grad(product, (0, 1, 2), has_aux=True))
    (_, (real, finite)), gradients = run(*operands)
    assert finite
    return real, *gradients


@pytest.mark.parametrize(
    ("interaction", "tokens", "heads", "mesh", "dtype"),
    [
        ("cross", 128, 4, Mesh(2, 2, 2), jnp.bfloat16),
        ("towers", 128, 4, Mesh(2, 2, 2), jnp.bfloat16),
        ("shared", 128, 4, Mesh(2, 2, 2), jnp.bfloat16),
        ("shared", 96, 2, Mesh(1), jnp.float32),  # padded to 128
        ("cross", 640, 1, Mesh(1), jnp.float32),  # five blocks
        ("shared", 640, 1, Mesh(1), jnp.float32),
        ("shared", 128, 3, Mesh(1, 1, 2), jnp.float32),  # heads that tensor does not divide
    ],
)
def test_equals_the_reference_on_packed_rows(interaction, tokens, heads, mesh, dtype):
    rows = mesh.data * mesh.fsdp
    visibility = getattr(Visibility, interaction)(*map(jnp.array, packed_ids(rows, tokens)))
    keys = jax.random.split(jax.random.key(0), 3)
    operands = [2 * jax.random.normal(key, (rows, tokens, heads, 16)).astype(dtype) for key in keys]
    found = values_and_gradients(splash(mesh), operands, visibility)
    expected = values_and_gradients(reference, operands, visibility)
    # Of the largest value: float32 sums in another order; bfloat16 rounds probabilities and results to 8 bits.
    share = 2e-2 if dtype == jnp.bfloat16 else 1e-5
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=share * np.abs(other).max())


def batch_of(rows: int, tokens: int) -> PackedBatch:
    """Packed rows of random tokens whose candidates are read by their mean."""
    segment, candidate = packed_ids(rows, tokens)
    random = np.random.default_rng(1)
    ids = random.integers(0, 50, (rows, tokens)).astype(np.int32)
    kind = (candidate > 0).astype(np.int32)
    return make_batch(ids, slots=int(candidate.max()), token_types=kind, segment=segment, candidate=candidate)


def test_a_model_gives_the_same_logits_and_gradients():
    # Both kinds of visibility; the mean reads every token, so that no layer computes only some.
    model = Model(interaction="split", split_layers=1, readout="mean", dtype="float32")
    bert = BertConfig(50, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=16, max_positions=128)
    params, batch = models.init(model, bert, 1, jax.random.key(0)), batch_of(2, 128)
    # Weights large enough that attention is far from uniform.
    params = {path: 5 * array if path.endswith(("kernel", "embedding")) else array for path, array in params.items()}
    real = np.arange(batch.readout.shape[1]) < batch.candidate.max(1, keepdims=True)

    def results(attention):
        graphdef = models.build(model, bert, 1, attention)

        def loss(params):
            logits = ctr.forward(graphdef, params, batch)
            return jnp.where(real[..., None], logits**2, 0).sum(), jnp.where(real[..., None], logits, 0)

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return {"logits": logits} | gradients

    found, expected = results(splash()), results(attend)
    for name, array in found.items():
        # Float32 sums in another order, through three layers and back.
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4 * largest, err_msg=name)


def test_attention_dropout_is_refused():
    x, visibility = jnp.zeros((1, 128, 1, 8)), Visibility.cross(jnp.ones((1, 128), jnp.int32), None)
    with pytest.raises(NotImplementedError, match="no attention dropout"):
        splash()(x, x, x, visibility, 0.1, jax.random.key(0))
    assert np.isfinite(splash()(x, x, x, visibility, 0.1, None)).all()


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (pip install 'jax[tpu]')")
def test_the_training_step_compiles_for_eight_tpus():
    script = Path(__file__).with_name("compile_for_tpu.py")
    tests = ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in tests}
    arguments = ["splash", "--interaction=split", "--layers=3", "--hidden=128", "--rows=8", "--tokens=128"]
    run = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # Forward, gradient of queries, gradient of keys and values, in a layer of segment ids and one with a mask; the last
    # layer computes few positions, without a kernel.
    assert ", 6 kernels, " in run.stdout
