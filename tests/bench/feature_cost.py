"""What ids, numbers and vectors cost a step of MiniLM: the shop of `configs/signals.py` with and without them.

    SRSJAX_MINILM=all-MiniLM-L6-v2 python tests/bench/feature_cost.py --out feature_cost

Both read the same texts with the same encoder, 16 rows of 128 tokens; one also an id of the item, the user's income,
the price and an image vector, joined by the combination named. One process; the two compiled steps by turns, each with
batches of its own that are on the device already. Prints the median seconds of a step, and of the ratio within a round
the median with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import os
import runpy
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from srsjax.config import Batch, Task, TrainConfig
from srsjax.console import Console
from srsjax.runs.sharding import put_batch
from srsjax.training.setup import set_up

STEPS = 5
"""Steps of a measurement."""


class Arm:
    """A training that is ready to step."""

    def __init__(self, config: TrainConfig):
        made = set_up(config, Console(quiet=True))
        self.step, self.state = made.step.wait(), made.state
        self.batches = [put_batch(made.session.mesh, next(made.batches)[0], row_axis=1) for _ in range(STEPS)]

    def seconds(self) -> float:
        """Of a step."""
        began = time.perf_counter()
        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready((self.state, metrics))
        return (time.perf_counter() - began) / STEPS


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("feature_cost"), help="folder of the shop and its store")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with_signals = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "signals.py"))["with_signals"]
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(given.out)

    def config(signals: tuple[str, ...], combine: str) -> TrainConfig:
        made = with_signals(signals, (Task("click"),))
        model = replace(made.model, pretrained=os.environ["SRSJAX_MINILM"], combine=combine)
        return replace(made, model=model, batch=Batch(rows=16, tokens=128))

    plain = Arm(config((), "text"))
    print("| combination | text alone, s | with features, s | ratio |\n|---|---|---|---|")
    for combine in ("concat", "attention"):
        arm = Arm(config(("ids", "numbers", "images"), combine))
        plain.seconds(), arm.seconds()
        pairs = []
        for number in range(given.rounds):
            first, second = (plain, arm) if number % 2 else (arm, plain)
            taken = {first: first.seconds(), second: second.seconds()}
            pairs.append((taken[plain], taken[arm]))
        text, features = np.median(pairs, axis=0)
        ratios = [b / a for a, b in pairs]
        spread = f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {combine} | {text:.3f} | {features:.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
