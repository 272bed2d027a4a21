"""The jitted training step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.compilation import compiler_options
from srsjax.data.batches.batch import PackedBatch
from srsjax.objectives import losses
from srsjax.objectives.losses import Objectives
from srsjax.runs.sharding import ROWS
from srsjax.runs.state import Forward, TrainState
from srsjax.runs.tables import TableOptimizer


class StepMetrics(NamedTuple):
    """Scalars of one step, on device until they are logged."""

    loss: jax.Array
    grad_norm: jax.Array
    tokens: jax.Array
    """Real (non-padding) tokens, int32."""
    candidates: jax.Array
    """Candidates in the batch, int32."""
    applied: jax.Array
    """bool: whether the step changed the state. False where the loss or the gradient is not finite."""


def make_train_step(
    forward: Forward, goals: Objectives, optimizer: optax.GradientTransformation | TableOptimizer, seed: int
):
    """The pure function (state, batch [A, R / A, ...]) -> (state, StepMetrics); jit it with `jit_train_step`.

    Gradients of the micro-batches are sums that share one normaliser, so that A changes memory, not the result, but
    where a loss compares the candidates of a micro-batch; `forward` then gives (logits, pairs) (`ctr.forward_pairs`).

    A step whose loss or gradient is not finite changes nothing but `state.step`.
    """
    with_pairs = any(made.in_batch for made, _ in goals)

    def train_step(state: TrainState, batch: PackedBatch) -> tuple[TrainState, StepMetrics]:
        normaliser, parts = losses.normalisers(goals, batch), batch.tokens.shape[0]
        given = state.params
        numbers: dict[str, jax.Array] = {}
        if isinstance(optimizer, TableOptimizer):
            rows, numbers, batch = optimizer.tables.take(state.params, batch)
            given = {**state.params, **rows}
        step_key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)

        def micro_loss(params, part: PackedBatch, index):
            read = forward({**params, **state.frozen}, part, dropout_key=jax.random.fold_in(step_key, index))
            logits, pairs = read if with_pairs else (read, None)
            return losses.total_loss(goals, logits, part, normaliser, params.get("log_variance"), 1 / parts, pairs)

        if parts == 1:
            loss, gradients = jax.value_and_grad(micro_loss)(given, jax.tree.map(lambda x: x[0], batch), 0)
        else:

            def add(carry, part_and_index):
                loss, gradients = jax.value_and_grad(micro_loss)(given, *part_and_index)
                return jax.tree.map(jnp.add, carry, (loss, gradients)), None

            zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, given))
            (loss, gradients), _ = jax.lax.scan(add, zero, (batch, jnp.arange(parts)))

        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if isinstance(optimizer, TableOptimizer):
            rest = optimizer.without(state.params)
            # Rows that no table has are dropped: selecting whole tables would copy them.
            numbers = {path: jnp.where(finite, n, state.params[path].shape[0]) for path, n in numbers.items()}
            updates, opt = optimizer.rest.update(optimizer.without(gradients), state.opt["rest"], rest)
            tables, sums = optimizer.tables.update(state.params, state.opt["tables"], numbers, gradients, state.step)
            made, opt = _if(finite, (optax.apply_updates(rest, updates), opt), (rest, state.opt["rest"]))
            params, opt = made | tables, {"rest": opt, "tables": sums}
        else:
            updates, opt = optimizer.update(gradients, state.opt, state.params)
            params = optax.apply_updates(state.params, updates)
            params, opt = _if(finite, (params, opt), (state.params, state.opt))
        metrics = StepMetrics(
            loss=loss,
            grad_norm=norm,
            tokens=jnp.sum(batch.segment > 0, dtype=jnp.int32),
            candidates=jnp.sum(batch.group >= 0, dtype=jnp.int32),
            applied=finite,
        )
        return TrainState(state.step + 1, params, opt, state.frozen), metrics

    return train_step


def _if(condition: jax.Array, then, otherwise):
    """One of two trees of arrays, by a scalar that is on the device."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)


def jit_train_step(train_step, mesh: jax.sharding.Mesh, shardings: TrainState):
    """`train_step` jitted once: state donated and kept where it is, rows divided, metrics whole on every device."""
    whole = NamedSharding(mesh, P())
    return jax.jit(
        train_step,
        in_shardings=(shardings, NamedSharding(mesh, P(None, ROWS))),
        out_shardings=(shardings, whole),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
