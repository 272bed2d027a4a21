"""Worker of the speed tables: srsjax. `paired.Worker` starts it."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # tests/

import jax
import jax.numpy as jnp
import numpy as np
import optax
from batches import make_batch
from bench_examples import load_config, read_examples
from paired import Clock, arguments, serve
from speed_inputs import GATE_ROWS, full_rows, training_subset

from srsjax import config
from srsjax.bench import matmul_rate
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.loader import Batches, train_batches
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.arrays import Store
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.model import ctr, hf
from srsjax.model.compute import Compute
from srsjax.model.spec import ModelSpec, Outputs, encoder_config
from srsjax.objectives import losses
from srsjax.runs import optimizers
from srsjax.runs.precision import choose_precision
from srsjax.runs.session import initial_state, open_session
from srsjax.runs.sharding import put_batch
from srsjax.runs.spec import layout_of, make_spec
from srsjax.runs.steps import training_step
from srsjax.training.meter import IN_FLIGHT


class Training:
    """A session with its state and jitted step; the weights of a checkpoint with a head, or random ones."""

    def __init__(self, settings: config.TrainConfig, vocab_size: int, steps: int, longest: int = 0):
        bert = encoder_config(settings.model, vocab_size)
        outputs = tuple(Outputs(task.name, task.kind) for task in settings.schema.tasks)
        spec = ModelSpec.of(settings.model, bert, outputs=outputs, longest_part=longest)
        self.session = open_session(settings, spec)
        self.goals = self.session.objectives(settings)
        exact = Compute.of(replace(settings.model, dtype="float32"), self.session.attention.attend)
        self.float32_forward = partial(ctr.forward, ctr.build(spec, exact))
        source = settings.model.pretrained
        weights = hf.load_weights(source, bert, num_tasks=1)[0] if source else {}
        optimizer = optimizers.make_optimizer(settings.optimizer, steps, list(self.session.shapes))
        self.state = initial_state(self.session, optimizer, settings.seed, weights)
        self._step = training_step(settings, self.session, optimizer)

    def step(self, batch: PackedBatch) -> jax.Array:
        """One step on a batch [A, R / A, ...] of the host; its loss, not yet computed."""
        self.state, metrics = self._step(self.state, put_batch(self.session.mesh, batch, row_axis=1))
        return metrics.loss

    def run(self, batches: Batches) -> float:
        """Steps on all that is left of the batches; their mean loss."""
        waiting: list[jax.Array] = []
        for batch, _ in batches:
            waiting.append(self.step(batch))
            jax.block_until_ready(waiting[: -1 - IN_FLIGHT])
        return float(np.mean(jax.device_get(waiting)))


class Step:
    """BERT's training step over full rows, one text a row."""

    def __init__(self, folder: str, rows: int, tokens: int, steps: int, dtype: str = "auto"):
        settings = config.TrainConfig(
            model=config.Model(pretrained=folder, dtype=dtype),
            optimizer=config.Optimizer(learning_rate=2e-5, schedule="constant", warmup=0),
        )
        settings = choose_precision(settings.model, hf.load_config(folder)).apply(settings)
        self.dtype = settings.model.dtype
        self.training = Training(settings, vocab_size=1, steps=1)
        self.shape, self.steps, self.done = (rows, tokens), steps, 0

    def precision(self) -> str:
        return self.dtype

    def gate(self) -> dict[str, list[float]]:
        batch = jax.tree.map(lambda array: array[0], self._batch(0))
        training = self.training

        def loss_and_logits(params):
            logits = training.session.forward(params, batch)
            return losses.total_loss(training.goals, logits, batch, losses.normalisers(training.goals, batch)), logits

        exact = jax.jit(training.float32_forward)(training.state.params, batch)
        differentiate = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
        (loss, logits), gradients = differentiate(training.state.params)
        answer = {"float32 logits": exact.ravel().tolist(), "logits": logits.ravel().tolist()}
        return answer | {"loss": [float(loss)], "gradient norm": [float(optax.tree.norm(gradients))]}

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            for _ in range(self.steps):
                self.done += 1
                loss = self.training.step(self._batch(self.done))
            jax.block_until_ready(loss)
        return times | {"loss": float(loss)}

    def _batch(self, step: int) -> PackedBatch:
        ids, labels = full_rows(*self.shape, step)
        group, labels = np.arange(len(ids), dtype=np.int32)[:, None], labels[:, None, None]
        batch = make_batch(ids, group=group, labels=labels, weights=np.ones_like(labels))
        return jax.tree.map(lambda array: array[None], batch)

    def peak(self) -> float:
        return matmul_peak(self.precision())


class FineTune:
    """One epoch of fine-tuning on a part of a config's training split, packed as `srsjax.train` packs it."""

    def __init__(self, name: str, folder: str, examples: int, dtype: str = "auto"):
        settings = load_config(name)
        model = replace(settings.model, pretrained=folder, dtype=dtype)
        self.settings = choose_precision(model, hf.load_config(folder)).apply(replace(settings, model=model))
        self.rows = training_subset(read_examples(self.settings), examples)
        self.training: Training | None = None

    def precision(self) -> str:
        return self.settings.model.dtype

    def gate(self) -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory() as folder:
            store = prepare(self._storing_in(folder), log=lambda text: None)
            wanted = self.rows[:GATE_ROWS]
            batches = self._batches(store, wanted)
            self.training = Training(self.settings, self.vocab_size, batches.steps, self.longest)
            forward, found = jax.jit(self.training.float32_forward), {}
            example = store.split("train").example
            for batch, numbers in batches:
                logits = np.asarray(forward(self.training.state.params, jax.tree.map(lambda array: array[0], batch)))
                found |= dict(zip(example[numbers[numbers >= 0]], logits[numbers[0] >= 0, 0], strict=True))
        return {"float32 logits": [float(found[row]) for row in wanted]}

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            with Clock(times, "prepare"):  # reading, checking, tokenising and writing all splits, planning: once a run
                store = prepare(self._storing_in(folder), log=lambda text: None)
                batches = self._batches(store, self.rows)
            with Clock(times, "run"):
                loss = self.training.run(batches)
        return times | {"loss": loss}

    def _storing_in(self, folder: str) -> config.TrainConfig:
        return replace(self.settings, data=replace(self.settings.data, store=folder))

    def _batches(self, store: Store, rows: np.ndarray) -> Batches:
        """One epoch of batches of some rows of the training split: the others have weight 0, which is not trained."""
        split, text = store.split("train"), load_tokenizer(str(store.folder / "tokenizer"))
        spec = make_spec(self.settings, text)
        self.vocab_size, self.longest, layout = text.vocab_size, spec.longest_part, layout_of(spec, text)
        weights = np.where(np.isin(split.example, rows)[:, None], split.weights, 0)
        return train_batches(
            replace(split, weights=weights),
            store.items,
            layout,
            self.settings.batch,
            whole_impressions=losses.needs_whole_impressions(self.settings.schema.tasks),
            seed=self.settings.seed,
        )

    def peak(self) -> float:
        return matmul_peak(self.precision())


def matmul_peak(dtype: str) -> float:
    """FLOP/s of a product with float32 result, as large as the other system's."""
    return matmul_rate(jnp.dtype(dtype), size=4096)


SYSTEMS = {"step": Step, "finetune": FineTune}


def main() -> None:
    options = arguments()
    options.pop("threads")  # the processor affinity decides
    serve(SYSTEMS[options.pop("system")](**options))


if __name__ == "__main__":
    main()
