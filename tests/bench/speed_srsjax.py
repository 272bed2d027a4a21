"""Worker of the speed tables: srsjax. `paired.Worker` starts it."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from paired import arguments, serve
from speed_inputs import full_rows

from srsjax import config
from srsjax.data.batch import PackedBatch
from srsjax.model import ctr, hf
from srsjax.training import losses, optimizers
from srsjax.training.session import initial_state, open_session
from srsjax.training.sharding import put_batch
from srsjax.training.step import jit_train_step, make_train_step


class Training:
    """A session with its state and jitted step, from a checkpoint that has a head."""

    def __init__(self, settings: config.TrainConfig, vocab_size: int, steps: int):
        self.tasks = settings.schema.tasks
        bert = ctr.encoder_config(settings.model, vocab_size)
        self.session = open_session(settings, bert)
        exact = replace(settings.model, dtype="float32")
        self.float32_forward = partial(ctr.forward, ctr.build(exact, bert, len(self.tasks)))
        weights, _ = hf.load_weights(settings.model.pretrained, bert, num_tasks=1)
        optimizer = optimizers.make_optimizer(settings.optimizer, steps, list(self.session.shapes))
        self.state = initial_state(self.session, optimizer, settings.seed, weights)
        shardings = jax.tree.map(lambda array: array.sharding, self.state)
        step = make_train_step(self.session.forward, self.tasks, optimizer, settings.seed)
        self._step = jit_train_step(step, self.session.mesh, shardings)

    def step(self, batch: PackedBatch) -> jax.Array:
        """One step on a batch [1, R, ...] of the host; its loss, not yet computed."""
        self.state, metrics = self._step(self.state, put_batch(self.session.mesh, batch, row_axis=1))
        return metrics.loss


class Step:
    """BERT's training step in bfloat16 over full rows, one text a row."""

    def __init__(self, folder: str, rows: int, tokens: int, steps: int):
        settings = config.TrainConfig(
            model=config.Model(pretrained=folder, dtype="bfloat16"),
            optimizer=config.Optimizer(learning_rate=2e-5, schedule="constant", warmup=0),
        )
        self.training = Training(settings, vocab_size=1, steps=1)
        self.shape, self.steps, self.done = (rows, tokens), steps, 0

    def gate(self) -> dict[str, list[float]]:
        batch = jax.tree.map(lambda array: array[0], self._batch(0))
        training = self.training

        def loss_and_logits(params):
            logits = training.session.forward(params, batch)
            return losses.total_loss(training.tasks, logits, batch, losses.normalisers(training.tasks, batch)), logits

        exact = jax.jit(training.float32_forward)(training.state.params, batch)
        differentiate = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
        (loss, logits), gradients = differentiate(training.state.params)
        answer = {"float32 logits": exact.ravel().tolist(), "logits": logits.ravel().tolist()}
        return answer | {"loss": [float(loss)], "gradient norm": [float(optax.tree.norm(gradients))]}

    def measure(self) -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(self.steps):
            self.done += 1
            loss = self.training.step(self._batch(self.done))
        jax.block_until_ready(loss)
        return {"train": time.perf_counter() - started}

    def _batch(self, step: int) -> PackedBatch:
        ids, labels = full_rows(*self.shape, step)
        rows, tokens = ids.shape
        positions = np.broadcast_to(np.arange(tokens, dtype=np.int32), ids.shape)
        zero, one = np.zeros_like(ids), np.ones_like(ids)
        slot, group = np.zeros((rows, 1), np.int32), np.arange(rows, dtype=np.int32)[:, None]
        labels = labels[:, None, None]
        batch = (ids, positions, zero, one, one, slot, slot, slot, group, labels, np.ones_like(labels))
        return PackedBatch(*(array[None] for array in batch), {}, {})

    def peak(self) -> float:
        return matmul_peak()


def matmul_peak(size: int = 4096) -> float:
    """FLOP/s of a bfloat16 product of two squares with float32 result, the best of five."""
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main() -> None:
    options = arguments()
    options.pop("threads")  # the processor affinity decides
    serve({"step": Step}[options.pop("system")](**options))


if __name__ == "__main__":
    main()
