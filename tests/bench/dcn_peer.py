"""DCN-V2 on ids and numbers: srsjax beside FuxiCTR's layers in PyTorch, on one store, in one run.

    pip install fuxictr==2.3.10                # brings torch; its own environment may have srsjax's on its path
    python tests/bench/dcn_peer.py --out dcn_peer --seeds 0 1 2

Both read the store of `configs/dcn.py` without the list of items clicked before (FuxiCTR's plain DCN-V2 has no lists):
user, query, item, brand and category as ids, the price as a standardised logarithm. Embeddings of 16, three cross
layers beside a perceptron of 128 and 64, 1,024 examples a step, AdamW with the config's rates on both
sides, eight passes, the pass that is best on valid. The peer is FuxiCTR's `FeatureEmbedding`,
`CrossNetV2` and `MLP_Block` in a plain loop over tensors in memory, which is faster than its own loader. Seconds are
those of training steps alone; input and optimizer count on both sides. Prints test AUC and examples/s by seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from srsjax.data.inputs import input_specs
from srsjax.data.preparing.statistics import log_of
from srsjax.data.store.arrays import Store, open_store
from srsjax.metrics.auc import auc
from srsjax.runs.run_folder import RunFolder

CONFIG = """
from dataclasses import replace
from srsjax.cli import read_config

def get_config():
    made = read_config({config!r})
    context = tuple(f for f in made.schema.context if f.name != "clicked")
    evaluate = replace(made.evaluate, every=0)
    return replace(made, schema=replace(made.schema, context=context), evaluate=evaluate, log_every=50, seed={seed})
"""
EPOCHS, BATCH = 8, 1024


def srsjax(out: Path, seed: int) -> tuple[float, float, RunFolder]:
    """Test AUC, examples per second, and the run."""
    config = str(Path(__file__).parents[2] / "configs" / "dcn.py")
    (out / f"dcn_{seed}.py").write_text(CONFIG.format(config=config, seed=seed))
    command = ["-m", "srsjax.train", "--config", f"dcn_{seed}.py", "--run_dir", f"run-{seed}", "--overwrite", "True"]
    done = subprocess.run([sys.executable, *command], cwd=out, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    folder = RunFolder(out / f"run-{seed}")
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    # A line's rate is that of the steps since the line before; the first ones start the threads.
    rates = [line["examples_per_second"] for line in lines if line["kind"] == "train"][1:]
    report = json.loads((folder.path / "report.json").read_text())
    return report["test"]["auc"], len(rates) / sum(1 / rate for rate in rates), folder


def arrays(store: Store, specs, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs [M] and labels [M] of a split, as srsjax reads them."""
    split = store.split(name)
    of_context = np.repeat(np.arange(len(split)), np.diff(split.candidates))
    found = {}
    for spec in specs:
        if spec.side == "context":
            values = split.context_features[spec.name][of_context]
        elif spec.name in split.candidate_features:
            values = split.candidate_features[spec.name]
        else:
            values = store.items.features[spec.name][split.item]
        if spec.kind == "numeric":
            values = (log_of(values) - spec.mean) / spec.deviation
        found[spec.name] = np.asarray(values)
    return found, np.asarray(split.labels[:, 0])


def fuxictr(store: Store, specs, seed: int, threads: int) -> tuple[float, float]:
    """Test AUC of the pass that is best on valid, and examples per second of the training steps."""
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbedding, MLP_Block

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    of = FeatureMap("shop", ".")
    for spec in specs:
        numeric = spec.kind == "numeric"
        more = {} if numeric else {"padding_idx": 0, "vocab_size": spec.size}
        of.features[spec.name] = {"type": "numeric" if numeric else "categorical", "source": "", **more}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            width = 16 * len(specs)
            self.embed = FeatureEmbedding(of, 16, embedding_initializer="partial(nn.init.normal_, std=0.05)")
            self.cross = CrossNetV2(width, 3)
            self.deep = MLP_Block(width, hidden_units=[128, 64], hidden_activations="ReLU", output_dim=None)
            self.out = torch.nn.Linear(width + 64, 1)

        def forward(self, x):
            x = self.embed(x, flatten_emb=True)
            return self.out(torch.cat([self.cross(x), self.deep(x)], dim=-1))[:, 0]

    parts = {}
    for name in ("train", "valid", "test"):
        inputs, labels = arrays(store, specs, name)
        kinds = {key: torch.float32 if x.dtype != np.int32 else torch.int64 for key, x in inputs.items()}
        tensors = {key: torch.tensor(x).to(kinds[key]) for key, x in inputs.items()}
        parts[name] = tensors, torch.tensor(labels)
    model, (x, y) = Model(), parts["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = EPOCHS * -(-len(y) // BATCH)
    warmup = steps // 10
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(steps - step, 0) / (steps - warmup))
    )
    loss_of = torch.nn.BCEWithLogitsLoss()
    best, seconds = (-1.0, -1.0), 0.0
    for _ in range(EPOCHS):
        model.train()
        begun = time.perf_counter()
        order = torch.randperm(len(y))
        for rows in order.split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss_of(model({key: values[rows] for key, values in x.items()}), y[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
        seconds += time.perf_counter() - begun
        model.eval()
        with torch.no_grad():
            found = {name: auc_of(model, *parts[name]) for name in ("valid", "test")}
        best = max(best, (found["valid"], found["test"]))
    return best[1], EPOCHS * len(y) / seconds


def auc_of(model, x, y) -> float:
    """AUC of a PyTorch model."""
    scores = model(x).numpy().astype(np.float64)
    return float(auc(scores, y.numpy(), np.ones(len(scores))))


def main() -> None:
    """Trains both by turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dcn_peer"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of PyTorch; the fastest is shown")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| seed | srsjax AUC | FuxiCTR AUC | srsjax examples/s | FuxiCTR examples/s | ratio |")
    print("|---|---|---|---|---|---|")
    for seed in given.seeds:
        own, speed, folder = srsjax(given.out, seed)
        config = folder.config()
        manifest = json.loads((folder.path / "manifest.json").read_text())
        [store] = (given.out / config.data.store).iterdir()
        opened, specs = open_store(store), input_specs(config.schema, manifest)
        theirs = [fuxictr(opened, specs, seed, threads) for threads in given.threads]
        other, fastest = theirs[0][0], max(speed for _, speed in theirs)
        rows.append((own, other, speed, fastest, speed / fastest))
        print(
            f"| {seed} | {own:.4f} | {other:.4f} | {speed:,.0f} | {fastest:,.0f} | {speed / fastest:.2f} |", flush=True
        )
    mean = np.mean(rows, axis=0)
    print(f"| mean | {mean[0]:.4f} | {mean[1]:.4f} | {mean[2]:,.0f} | {mean[3]:,.0f} | {mean[4]:.2f} |")


if __name__ == "__main__":
    main()
