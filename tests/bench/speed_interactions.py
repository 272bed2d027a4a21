"""Worker of the speed tables `interaction` and `scoring`: srsjax alone, one interaction a worker."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # tests/

import jax
import numpy as np
from batches import layout_for, make_split
from paired import Clock, arguments, serve
from speed_inputs import CANDIDATE, CANDIDATES, HISTORY
from speed_srsjax import Training, matmul_peak

from srsjax import config
from srsjax.data.batches.layout import BatchShape
from srsjax.data.batches.loader import eval_batches, train_batches
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.data.store.tokenizer import PairTemplate
from srsjax.inference.item_store import build_item_store
from srsjax.model import ctr, flops
from srsjax.model.compute import Compute
from srsjax.model.spec import ModelSpec, encoder_config
from srsjax.runs.evaluation import predict_split
from srsjax.runs.precision import choose_precision
from srsjax.runs.session import open_session

TEMPLATE = PairTemplate(prefix=(101,), between=(102,), suffix=(102,), candidate_type=1, separator=102)
ROWS = {"cross": (80, 220, 1, 4), "shared": (4, 600, CANDIDATES, 1)}
"""Rows, tokens, candidates and micro-batches of a step: 80 examples each, without padding, in the parts that were the
fastest (a row of two pairs of 220 tokens takes longer than two rows)."""


def impressions(number: int, items: int) -> tuple[Split, Items]:
    """Impressions of random token ids; candidates are drawn from `items` items."""
    rng = np.random.default_rng(0)

    def texts(rows: int, tokens: int) -> Ragged:
        return Ragged.from_lengths(rng.integers(1000, 30000, rows * tokens).astype(np.int32), np.full(rows, tokens))

    size = number * CANDIDATES
    context, item = texts(number, HISTORY - 2), rng.integers(0, items, size)
    split = make_split(rng.integers(0, 2, size), counts=np.full(number, CANDIDATES), context=context, item=item)
    return split, Items(texts(items, CANDIDATE - 1))


VOCABULARY = 30522
SIZES = {
    "MiniLM-L6": {"hidden_size": 384, "num_layers": 6, "num_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072},
}


class System:
    """An encoder with random weights and the impressions it reads."""

    def __init__(self, interaction: str, size: str, number: int, items: int, dtype: str = "auto"):
        model = config.Model(interaction=interaction, dtype=dtype, **SIZES[size])
        model = replace(model, dtype=choose_precision(model, encoder_config(model, VOCABULARY)).dtype)
        rows, self.tokens, self.candidates, parts = ROWS["cross" if interaction == "cross" else "shared"]
        batch = config.Batch(rows=rows, tokens=self.tokens, candidates=self.candidates, micro_batches=parts)
        self.rows = rows // parts  # of a micro-batch
        self.config = config.TrainConfig(model=model, batch=batch)
        self.session = open_session(self.config, ModelSpec.of(model, encoder_config(model, VOCABULARY)))
        self.layout = layout_for(interaction, HISTORY, TEMPLATE)
        self.split, self.items = impressions(number, items)

    def gate(self) -> dict[str, list[float]]:
        """Packed with its neighbours and with one pair a row, in float32, a candidate has one logit."""
        exact = replace(self.config.model, dtype="float32")
        graphdef = ctr.build(self.session.spec, Compute.of(exact))
        params = self.session.init(jax.random.key(0))
        forward = jax.jit(lambda batch: ctr.forward(graphdef, params, batch))
        some = self.split.take(np.arange(2))
        logits = []
        for candidates in (0, 1):
            found = np.zeros(len(some.item))
            for batch, numbers in eval_batches(
                some, self.items, self.layout, rows=2, tokens=self.tokens, candidates=candidates
            ):
                found[numbers[numbers >= 0]] = np.asarray(forward(batch))[numbers >= 0, 0]
            logits.append(found)
        return {"packed equals alone": [float(np.abs(logits[0] - logits[1]).max() < 1e-4 * np.ptp(logits[1]))]}

    def precision(self) -> str:
        return self.config.model.dtype

    def peak(self) -> float:
        return matmul_peak(self.precision())


class Steps(System):
    """Training steps over all impressions once."""

    def __init__(self, interaction: str, size: str, number: int, dtype: str = "auto"):
        super().__init__(interaction, size, number, 1000, dtype)
        self.batches = train_batches(
            self.split, self.items, self.layout, self.config.batch, whole_impressions=False, seed=0
        )
        self.training = Training(self.config, VOCABULARY, steps=100)

    def flops(self) -> float:
        """Of one measurement."""
        self.batches.restore(0)
        counted = (flops.forward_flops(self.session.spec, batch) for batch, _ in self.batches)
        return flops.TRAINING * sum(counted)

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            self.batches.restore(0)
            self.training.run(self.batches)
        return times


class Scoring(System):
    """Scores of all impressions; `split` looks its items up, which were computed before the clock starts."""

    def __init__(self, interaction: str, size: str, number: int, items: int, dtype: str = "auto"):
        super().__init__(interaction, size, number, items, dtype)
        self.shape = BatchShape(self.layout, self.tokens, self.candidates, eval_rows=self.rows)
        self.params = jax.jit(self.session.init)(jax.random.key(0))
        self.step, self.complete = self.session.predict_step, lambda batch, numbers: batch
        if interaction == "split":
            before = self._scores(self.split.take(np.arange(4)))
            stored = build_item_store(self.session, self.params, self.items, self.shape)
            self.step = stored.step
            self.complete = lambda batch, numbers: stored.complete(self.item, batch, numbers)
            after = self._scores(self.split.take(np.arange(4)))
            # States in bfloat16 are stored as they are passed on; products of other shapes round other sums.
            if not np.abs(after - before).max() < 0.02 * np.abs(before).max():
                raise AssertionError("scores with stored items are others")

    def flops(self) -> float:
        """Not counted: what is looked up is not computed."""
        return 0.0

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            self._scores(self.split)
        return times

    def _scores(self, split: Split) -> np.ndarray:
        self.item = split.item
        mesh = self.session.mesh
        return predict_split(self.step, self.params, split, self.items, self.shape, mesh, complete=self.complete)


def main() -> None:
    options = arguments()
    options.pop("threads")  # the processor affinity decides
    serve({"training": Steps, "scoring": Scoring}[options.pop("system")](**options))


if __name__ == "__main__":
    main()
