"""What each signal of a shop is worth: texts, then ids, numbers and images besides, and three tasks instead of one.

    python tests/bench/signals.py --out signals

Trains `configs/signals.py` in parts, on the same simulated shop, and prints the AUC of clicks on the test split, the
share of the gap between item popularity and the best attainable, and examples per second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ALL = ("ids", "numbers", "images")
TOWERS = {"interaction": "towers", "readout": "mean"}
VARIANTS = {
    "text": ((), False, {}),
    "+ ids": (ALL[:1], False, {}),
    "+ numbers": (ALL[:2], False, {}),
    "+ images": (ALL, False, {}),
    "attention": (ALL, False, {"combine": "attention"}),
    "three tasks": (ALL, True, {}),
    "text, towers": ((), False, TOWERS),
    "+ ids, towers": (ALL[:1], False, TOWERS),
    "+ numbers, towers": (ALL[:2], False, TOWERS),
    "+ images, towers": (ALL, False, TOWERS),
    "attention, towers": (ALL, False, TOWERS | {"combine": "attention"}),
    "three tasks, towers": (ALL, True, TOWERS),
}
"""Signals, whether all tasks are trained, and what is another in the model."""
CONFIG = """
import runpy
from dataclasses import replace

of = runpy.run_path({config!r})


def get_config():
    made = of["with_signals"]({signals!r}, of["TASKS"] if {tasks} else of["TASKS"][:1])
    return replace(made, model=replace(made.model, **{model!r}), epochs={epochs}, seed={seed})
"""


def main() -> None:
    """Trains what is not there yet, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("signals"), help="folder of the runs")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config = str(Path(__file__).parents[2] / "configs" / "signals.py")
    print("| | test AUC | gap closed | examples/s |\n|---|---|---|---|")
    for number, (name, (signals, tasks, model)) in enumerate(VARIANTS.items()):
        found = []
        for seed in given.seeds:
            run = given.out / f"{number}-{seed}"
            text = CONFIG.format(
                config=config, signals=signals, tasks=tasks, model=model, epochs=given.epochs, seed=seed
            )
            (given.out / f"c{number}_{seed}.py").write_text(text)
            command = ["-m", "srsjax.train", "--config", f"c{number}_{seed}.py", "--run_dir", run.name]
            done = subprocess.run([sys.executable, *command], cwd=given.out, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found.append(_read(run))
        auc, gap, rate = (sum(each) / len(each) for each in zip(*found, strict=True))
        print(f"| {name} | {auc:.4f} | {gap:.1%} | {rate:,.0f} |", flush=True)


def _read(run: Path) -> tuple[float, float, float]:
    report = json.loads((run / "report.json").read_text())
    auc, of = report["test"]["auc"], report["test_references"]
    floor, best = of["popularity"]["auc"], of["oracle"]["auc"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(line["examples_per_second"] for line in lines if "examples_per_second" in line)
    return auc, (auc - floor) / (best - floor), rates[len(rates) // 2]


if __name__ == "__main__":
    main()
