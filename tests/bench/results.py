"""Results on real data: srsjax and PyTorch fine-tune the same weights on the same sequences, splits and epochs.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/results.py --out results

Every finished training is a line of `results/runs.jsonl` and is not repeated when the command runs again. At the end
`results/results.json` and `results/results.md` hold the table: mean over the seeds, each seed, the TF-IDF reference.
One system or config at a time: `--systems torch --configs esci reviews --seeds 0`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from bench_examples import load_config, read_examples
from bench_metrics import metrics, monitored
from bench_runs import command, run_missing

from srsjax.hardware import cpu
from srsjax.runs.run_folder import RunFolder

TITLES = {
    "upworthy": "Upworthy headlines",
    "reviews": "Women's clothing reviews",
    "esci": "ESCI sample",
    "product_matching": "Product matching",
}
TFIDF: dict[str, dict[str, float | None]] = {
    # Measured once, when the data sets were made: ridge on headlines, logistic regression on title + text, character
    # n-gram cosine of query and title + brand, cosine of the two offers.
    "upworthy": {"pairwise": 0.566, "pairwise_significant": 0.617, "auc": 0.551},
    "reviews": {"auc": 0.952},
    "esci": {"auc": 0.675},
    "product_matching": {
        "auc": None,
        "f1": None,
        "abt_buy_auc": 0.886,
        "abt_buy_f1": 0.586,
        "amazon_google_auc": 0.894,
        "amazon_google_f1": 0.520,
    },
}
"""The metrics of the table, with the TF-IDF reference of each where there is one."""


def train(folder: Path, threads: int, config: str, seed: int, system: str) -> dict:
    """One training: its metrics on valid and test, and its seconds."""
    return SYSTEMS[system](config, seed, folder, threads)


def run_torch(name: str, seed: int, folder: Path, threads: int) -> dict:
    """One training by `torch_finetune.py`: its line of results."""
    out = folder / f"torch-{name}-{seed}.json"
    out.unlink(missing_ok=True)
    script = Path(__file__).with_name("torch_finetune.py")
    # Threads that sleep while they wait, and blocks that stay with the process: on a few shared cores glibc's habit of
    # giving large blocks back after every step, and threads that spin, cost PyTorch more than half of its speed.
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
    settings["MALLOC_TRIM_THRESHOLD_"] = "8000000000"
    arguments = [sys.executable, script, "--config", name, "--seed", seed, "--threads", threads, "--out", out]
    subprocess.run([str(word) for word in arguments], check=True, env=os.environ | settings)
    return json.loads(out.read_text())


def run_srsjax(name: str, seed: int, folder: Path, threads: int) -> dict:
    """One training by `srsjax.train`, its valid and test rows scored by `srsjax.score`."""
    run, started = folder / f"srsjax-{name}-{seed}", time.time()
    command("train", "--config", name, "--seed", seed, "--run_dir", run, "--data.store", folder / "stores")
    seconds = time.time() - started
    config = load_config(name)
    examples, scores = read_examples(config), {}
    for split in ("valid", "test"):
        rows, output = folder / f"{name}-{split}.parquet", run / f"scores-{split}"
        pq.write_table(examples.log.take(pa.array(examples.rows(split))), rows)
        command("score", "--run", run, "--input", rows, "--output", output, "--overwrite", True)
        scores[split] = ds.dataset(output).to_table()["score"].to_numpy()
    result = {split: metrics(name, examples, scores, split) for split in scores}
    dtype = RunFolder(run).precision()["dtype"]
    metric = monitored(config)
    reported = json.loads((run / "report.json").read_text())["test"][metric]
    # The report and the files of scores pack other pairs together, which bfloat16 rounds otherwise: a few pairs of
    # almost equal scores may swap, 2e-5 of AUC each on the smallest set, 4e-4 of Upworthy's `pairwise`, which is over
    # 2,265 pairs (a listwise task reports no AUC). Rows mixed up would change either by far more.
    found = result["test"][metric]
    if abs(reported - found) > (1e-3 if metric == "auc" else 1e-2):
        raise AssertionError(f"{run}: report.json has test {metric} {reported}, its scores give {found}")
    return {"system": "srsjax", "config": name, "seed": seed, "dtype": dtype, **result, "seconds": seconds}


SYSTEMS = {"srsjax": run_srsjax, "torch": run_torch}


def summarise(runs: list[dict]) -> list[dict]:
    """One record for each config and metric: the reference, and mean, seeds and seconds of each system run."""
    records = []
    for name, metric, reference in ((name, *item) for name, shown in TFIDF.items() for item in shown.items()):
        record: dict = {"config": name, "metric": metric, "tfidf": reference}
        for system in SYSTEMS:
            found = sorted((r for r in runs if (r["system"], r["config"]) == (system, name)), key=lambda r: r["seed"])
            if found:
                values = {str(r["seed"]): r["test"][metric] for r in found}
                seconds = float(np.mean([r["seconds"] for r in found]))
                record[system] = {"mean": float(np.mean([*values.values()])), "seeds": values, "seconds": seconds}
                record[system] |= {"dtypes": sorted({r.get("dtype", "bfloat16") for r in found})}
        if len(record) > 3:
            records.append(record)
    return records


def markdown(records: list[dict]) -> str:
    """The records as a table: mean and, in brackets, the lowest and the highest seed."""

    def cell(system: dict | None) -> str:
        if not system:
            return "–"
        seeds = system["seeds"].values()
        return f"{system['mean']:.3f} ({min(seeds):.3f} to {max(seeds):.3f})"

    lines = ["| data | seeds | test metric | TF-IDF | srsjax | PyTorch |", "|---|---|---|---|---|---|"]
    for record in records:
        tfidf = "–" if record["tfidf"] is None else f"{record['tfidf']:.3f}"
        systems = " | ".join(cell(record.get(system)) for system in SYSTEMS)
        seeds = ", ".join(sorted({seed for system in SYSTEMS for seed in record.get(system, {"seeds": ()})["seeds"]}))
        metric = record["metric"].replace("_", " ")
        lines.append(f"| {TITLES[record['config']]} | {seeds} | {metric} | {tfidf} | {systems} |")
    dtypes = {
        system: sorted({dtype for record in records for dtype in record.get(system, {"dtypes": ()})["dtypes"]})
        for system in SYSTEMS
    }
    computed = "; ".join(f"{system}: {', '.join(found)}" for system, found in dtypes.items() if found)
    lines += ["", f"{computed}. CPU: {cpu()}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of runs and tables")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--configs", nargs="+", choices=TFIDF, default=list(TFIDF))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of PyTorch")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = itertools.product(args.configs, args.seeds, args.systems)
    keys = [dict(zip(("config", "seed", "system"), values, strict=True)) for values in wanted]
    runs = run_missing(args.out / "runs.jsonl", keys, partial(train, args.out, args.threads))
    records = summarise(runs)
    (args.out / "results.json").write_text(json.dumps(records, indent=1) + "\n")
    (args.out / "results.md").write_text(markdown(records))
    print(markdown(records))


if __name__ == "__main__":
    main()
