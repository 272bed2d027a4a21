"""Seconds from the command to the beginning and the end of the first training step of BERT-base, cold and warm.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/start.py --out start

`cold` compiles; `warm` loads the programs that the cold run kept. Both find their data prepared. The first step (16
rows of 128 tokens, `model.dtype auto`) takes longer than the later ones: it fetches its memory. BERT-base has random
weights and the tokenizer of `SRSJAX_MINILM`. Where PyTorch is installed, TensorBoard's writer imports it before the end
is told.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from speed_inputs import save_bert_base

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def first_step(run: Path, model: Path, out: Path) -> tuple[float, float]:
    """Seconds until a fresh run says that step 1 was begun (with what was compiled for it) and that it is done; the run
    is stopped then."""
    arguments = ("--config", "product_matching", "--run_dir", run, "--model.pretrained", model, "--log_every", 1)
    arguments += ("--data.store", out / "stores")
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(out / "programs"), "COLUMNS": "200"}
    started, begun = time.monotonic(), math.nan
    process = subprocess.Popen(
        [sys.executable, "-m", "srsjax.train", *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )
    for line in process.stdout:
        if re.match(r"programs: .*train_step (compiled|loaded)", line):
            begun = time.monotonic() - started
        if re.match(r"step +1/", line):
            done = time.monotonic() - started
            process.kill()
            process.wait()
            return begun, done
    raise RuntimeError(f"training ended with exit code {process.wait()} before its first step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("start"), help="folder of weights, store and programs")
    parser.add_argument("--tokenizer", type=Path, default=os.environ.get("SRSJAX_MINILM"), help="its folder")
    parser.add_argument("--runs", type=int, default=5, help="warm ones")
    args = parser.parse_args()
    out = args.out.absolute()
    model = out / "bert-base"
    if not model.exists():
        save_bert_base(model)
        for name in TOKENIZER:
            if (Path(args.tokenizer) / name).exists():
                shutil.copy(Path(args.tokenizer) / name, model)
    shutil.rmtree(out / "programs", ignore_errors=True)
    seconds = []
    for number in range(args.runs + 2):  # the first one prepares the data, the second one is cold
        if number == 1:
            shutil.rmtree(out / "programs")
        shutil.rmtree(out / "run", ignore_errors=True)
        seconds.append(first_step(out / "run", model, out))
        name = ("preparing", "cold")[number] if number < 2 else "warm"
        print(f"{name}: begun after {seconds[-1][0]:.1f} s, done after {seconds[-1][1]:.1f} s", flush=True)
    for what, (_, cold, *warm) in zip(("begun", "done"), zip(*seconds, strict=True), strict=True):
        low, median, high = np.percentile(warm, [25, 50, 75])
        print(f"{what}: cold {cold:.1f} s, warm {median:.1f} s (quartiles {low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
