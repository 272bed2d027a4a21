"""How fast batches are made from a prepared store: packed pairs a second of one core.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/input.py --out input

Reads the store (memory-mapped), deals units to rows, assembles token arrays and what goes with them; putting them on a
device is not counted. The time is that of all threads of the process together, so that it is the work of one core.
`python -m srsjax.bench --config C` sets it beside what training and scoring consume on a machine.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_examples import load_config

from srsjax.config import TrainConfig
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.runs.spec import layout_of, make_spec
from srsjax.runs.steps import training_batches


def measure(config: TrainConfig, seconds: float) -> tuple[float, float, float]:
    """Pairs and tokens a second of a core, and the padding, over whole batches after the first."""
    store = prepare(config, log=lambda text: None)
    text = load_tokenizer(str(store.folder / "tokenizer"))
    layout = layout_of(make_spec(config, text), text)
    batches = training_batches(replace(config, epochs=1e6, max_steps=0, seed=0), store, layout)
    next(batches)
    pairs, tokens = 0, 0
    started, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        batch, numbers = next(batches)
        pairs, tokens = pairs + int((numbers >= 0).sum()), tokens + int(np.count_nonzero(batch.segment))
    spent = time.process_time() - started
    batches.close()
    return pairs / spent, tokens / spent, batches.padding_share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("input"), help="folder of stores")
    parser.add_argument("--configs", nargs="+", default=["product_matching", "esci", "upworthy", "reviews", "chorus"])
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 256], help="of a batch; 0: the config's own")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    print(
        "| config | rows | packed pairs/s of a core | tokens/s of a core | padding |", "|---|---|---|---|---|", sep="\n"
    )
    for name in args.configs:
        config = load_config(name)
        config = replace(config, data=replace(config.data, store=str(args.out.absolute() / "stores")))
        for rows in args.rows:
            batch = replace(config.batch, rows=rows or config.batch.rows, micro_batches=1)
            pairs, tokens, padding = measure(replace(config, batch=batch), args.seconds)
            print(
                f"| {name} | {batch.rows} x {batch.tokens} | {pairs:,.0f} | {tokens:,.0f} | {padding:.1%} |", flush=True
            )


if __name__ == "__main__":
    main()
