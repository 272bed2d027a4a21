"""Shapes of evaluation batches, and the few smaller ones that requests are cut to, so that small requests are fast."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import BatchShape, Layout
from srsjax.model.spec import ModelSpec
from srsjax.runs.sharding import row_divisor

Shape = tuple[int, int]
"""Rows R and token slots L of a batch."""

CPU_TOKENS = 1024
"""Tokens of an evaluation batch on each CPU device: what one layer passes on to the next then stays in the caches.
MiniLM takes 35 to 41 microseconds a token in bfloat16 then, and 48 in batches of 4,096 (two cores)."""
SHORT = (4, 2)
"""A row of L tokens may be cut to L divided by these."""
STEP = 16
"""Cut rows are a multiple of it, which vector registers and matrix tiles of all devices like."""
ON_TOKENS = ("tokens", "positions", "token_types", "segment", "candidate")
"""Fields of a batch that have an axis of tokens."""


def batch_shape(config: TrainConfig, spec: ModelSpec, layout: Layout, mesh: jax.sharding.Mesh) -> BatchShape:
    """The shape of a run's evaluation batches."""
    return BatchShape(layout, spec.tokens, spec.candidates, evaluation_rows(config, spec, mesh), spec.num_outputs)


def evaluation_rows(config: TrainConfig, spec: ModelSpec, mesh: jax.sharding.Mesh) -> int:
    """Rows of an evaluation batch: `batch.eval_rows`, else one micro-batch and, where a CPU encodes text, at most
    `CPU_TOKENS` tokens of each device; rounded up to what the mesh divides."""
    divisor = row_divisor(mesh)
    rows = config.batch.eval_rows or config.batch.rows // config.batch.micro_batches
    if not config.batch.eval_rows and spec.reads_text and mesh.devices.flat[0].platform == "cpu":
        rows = min(rows, max(1, CPU_TOKENS // config.batch.tokens) * divisor)
    return -(-rows // divisor) * divisor


def row_counts(eval_rows: int, divisor: int) -> list[int]:
    """Rows of a small batch: `divisor` times 1, 2, 3, 4, 6, 8, 12, ..., and at most those of an evaluation batch."""
    counts, rows = [], 1
    while rows * divisor < eval_rows:
        counts += [rows * divisor] + [rows // 2 * 3 * divisor] * (rows > 1 and rows // 2 * 3 * divisor < eval_rows)
        rows *= 2
    return [*counts, eval_rows]


def request_shapes(shape: BatchShape, mesh: jax.sharding.Mesh, short: bool) -> list[Shape]:
    """What batches may be cut to, the smallest first, an evaluation batch last; that alone where several processes
    compute a batch, which would have to agree.

    Args:
      short: whether rows of fewer tokens are among them, for a request that fits in the fewest rows.
    """
    if mesh.is_multi_process:
        return [(shape.eval_rows, shape.tokens)]
    counts = row_counts(shape.eval_rows, row_divisor(mesh))
    lengths = {-(-shape.tokens // parts // STEP) * STEP for parts in SHORT} if short else set()
    cut = [(counts[0], length) for length in sorted(lengths) if length < shape.tokens]
    return cut + [(rows, shape.tokens) for rows in counts]


def cut(batch: PackedBatch, where: np.ndarray, shapes: Sequence[Shape]) -> tuple[PackedBatch, np.ndarray]:
    """A batch [R, L] and the candidate number of each slot [R, C] without padding at the end of rows and of the batch,
    down to the first of `shapes` that holds the rest."""
    used = int(np.flatnonzero((where >= 0).any(axis=1)).max(initial=0)) + 1
    longest = int(np.flatnonzero((batch.segment > 0).any(axis=0)).max(initial=0)) + 1
    rows, tokens = next(((r, t) for r, t in shapes if r >= used and t >= longest), batch.tokens.shape)
    batch = jax.tree.map(lambda array: array[:rows], batch)
    if tokens < batch.tokens.shape[1]:
        batch = batch._replace(**{name: getattr(batch, name)[:, :tokens] for name in ON_TOKENS})
    return batch, where[:rows]
