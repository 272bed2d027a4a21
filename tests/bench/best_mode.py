"""The fastest way to a list of the best: `towers` with stored vectors beside cross-encoders that score every pair.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/best_mode.py --out best-mode

Each context's candidates (`predict_inputs.py`) are scored by the peers of `speed.py predict`, texts included. srsjax
computes the vectors of all products once, before; measured is `Scorer.recommend`, from the text of contexts to the ten
best of the whole catalogue, for which it is credited with no more pairs than the peers score. The run is of one step:
how long it takes depends on no weight. What the interactions are worth: `interactions.py`, `tradeoff.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_runs import command
from paired import Clock, Worker, arguments, measure, quartiles, serve
from predict_inputs import MIXES, read_pairs
from speed_inputs import save_with_head

from srsjax.hardware import cpu

CONTEXTS = {"query and description": (256, 16), "history and title": (256, 3)}
"""Contexts of one measurement: of srsjax, and of a peer."""
PEERS = {
    "CrossEncoder": {"system": "library", "dtype": "auto"},
    "ONNX Runtime": {"system": "onnxruntime", "dtype": "int8"},
    "OpenVINO": {"system": "openvino", "dtype": "int8"},
}
CONFIG = """
from srsjax.config import Batch, Catalogue, Data, Evaluate, Model, Schema, Table, Task, Text, TrainConfig

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(Text("context", max_tokens={mix.context}),),
            candidate=(Text("product", "items.text", max_tokens={mix.candidate}),),
            tasks=(Task("label"),),
        ),
        data=Data(log=Table("{folder}/log.parquet"), catalogues=(Catalogue("{folder}/items.parquet", key="id"),)),
        model=Model(pretrained={encoder!r}, interaction="towers", readout="mean"),
        batch=Batch(rows=8, tokens=256),
        max_steps=1,
        evaluate=Evaluate(calibration="none"),
    )
"""


class Lists:
    """A run of towers that recommends from its catalogue."""

    def __init__(self, run: str, mix: str, contexts: int, encoder: str, threads: int):
        from transformers import AutoTokenizer

        from srsjax.inference.scorer import Scorer

        del threads  # the processor affinity decides
        self.scorer = Scorer.load(run)
        self.scorer.item_vectors()
        texts, _ = read_pairs(mix, contexts, AutoTokenizer.from_pretrained(encoder))
        self.contexts = [{"context": text} for text in texts]

    def precision(self) -> str:
        return self.scorer.session.compute.dtype.name

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            self.scorer.recommend(self.contexts, top_k=10)
        return times


def train(folder: Path, mix: str) -> Path:
    """The run of a mix, made where it is not there, with all products as its catalogue."""
    from transformers import AutoTokenizer

    encoder = os.environ["SRSJAX_MINILM"]
    folder.mkdir(parents=True, exist_ok=True)
    contexts, candidates = read_pairs(mix, 64, AutoTokenizer.from_pretrained(encoder))
    texts = sorted({text for own in candidates for text in own})
    rows = [(context, text) for context, own in zip(contexts, candidates, strict=True) for text in own[:10]]
    number = {text: i for i, text in enumerate(texts)}
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), folder / "items.parquet")
    log = {"context": [context for context, _ in rows], "id": [number[text] for _, text in rows]}
    pq.write_table(pa.table(log | {"label": [i % 3 == 0 for i in range(len(rows))]}), folder / "log.parquet")
    (folder / "towers.py").write_text(CONFIG.format(folder=folder, mix=MIXES[mix], encoder=encoder))
    with contextlib.chdir(folder):
        command("train", "--config", "towers.py", "--run_dir", "run", "--overwrite", True)
    return folder / "run"


def main() -> None:
    """Makes the runs, measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("best-mode"), help="folder of runs, weights and table")
    parser.add_argument("--mixes", nargs="+", choices=CONTEXTS, default=list(CONTEXTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    out = args.out.absolute()
    weights = out / "minilm"
    if not weights.exists():
        save_with_head(os.environ["SRSJAX_MINILM"], weights)
    lines = ["| pairs | system | pairs/s | srsjax is faster by (quartiles) |", "|---|---|---|---|"]
    for mix in args.mixes:
        own, of_peer = CONTEXTS[mix]
        run = train(out / mix.replace(" ", "-"), mix)
        given = {"mix": mix, "contexts": own, "run": str(run), "encoder": os.environ["SRSJAX_MINILM"]}
        peers = {name: {"folder": str(weights), "mix": mix, "contexts": of_peer, **of} for name, of in PEERS.items()}
        with ExitStack() as stack:
            workers = {"srsjax, towers": stack.enter_context(Worker(Path(__file__), args.threads, given))}
            script = Path(__file__).with_name("predict_peers.py")
            workers |= {name: stack.enter_context(Worker(script, args.threads, of)) for name, of in peers.items()}
            precision = {name: worker.ask("precision") for name, worker in workers.items()}
            rounds = measure(workers, args.rounds)
        first = next(iter(workers))
        contexts = {name: own if name == first else of_peer for name in workers}
        speed = {
            name: np.array([MIXES[mix].candidates * contexts[name] / each[name]["run"] for each in rounds])
            for name in workers
        }
        for name, found in speed.items():
            median, low, high = quartiles(list(speed[first] / found))
            ratio = "" if name == first else f"**{median:.0f}** ({low:.0f} to {high:.0f})"
            lines.append(f"| {mix} | {name}, {precision[name]} | {np.median(found):,.0f} | {ratio} |")
    table = "\n".join([*lines, "", f"CPU: {cpu()}, {args.threads} threads."])
    (out / "best_mode.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        with contextlib.redirect_stdout(sys.stderr):  # the answers alone go there
            made = Lists(**arguments())
        serve(made)
    else:
        main()
