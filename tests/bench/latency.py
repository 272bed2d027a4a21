"""Latency of one request of 1 to 500 documents: `Scorer` against sentence-transformers' `CrossEncoder`.

    python tests/bench/latency.py --model cross-encoder/ms-marco-MiniLM-L6-v2
    python tests/bench/latency.py --encoder "$SRSJAX_MINILM"        a head of random weights on that encoder

Both rank with the same weights in float32 and must agree on the scores. Each is a process of its own; they answer the
same requests in turn (`paired.py`), so that ratios are those of one moment. Prints median and 99th percentile of each
in milliseconds, and the median and quartiles of the ratio within a round. Requests differ from round to round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from paired import Clock, Worker, arguments, check_gate, measure, quartiles, serve

COUNTS = (1, 10, 100, 500)
WORDS = "red blue green black wool silk cotton coat shoe shoes winter summer rain light warm simple for men women kids"
QUERY_WORDS, DOCUMENT_WORDS = (1, 6), (5, 60)
SYSTEMS = ("srsjax", "sentence-transformers")
TOLERANCE = {"scores": 1e-3}
"""Of the spread of the scores: float32, in another order of sums."""


def request(seed: int, count: int) -> tuple[str, list[str]]:
    """A query and `count` documents."""
    rng, words = np.random.default_rng(seed), WORDS.split()
    text = lambda limits: " ".join(rng.choice(words, rng.integers(*limits)))  # noqa: E731
    return text(QUERY_WORDS), [text(DOCUMENT_WORDS) for _ in range(count)]


class System:
    """Either library: answers the requests of one round after the other."""

    def __init__(self, system: str, folder: str, max_length: int, threads: int):
        self.rounds = 0
        if system == "srsjax":
            from srsjax.config import Mesh
            from srsjax.inference.scorer import Scorer

            self.model = Scorer.load(folder, mesh=Mesh(), max_length=max_length)
            self.model.warm_up(lambda line: print(line, file=sys.stderr))
        else:
            import torch
            from sentence_transformers import CrossEncoder

            torch.set_num_threads(threads)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.model = CrossEncoder(folder, max_length=max_length, device=device)

    def gate(self) -> dict[str, list[float]]:
        """The scores of one request, in the order of its documents."""
        ranked = self.model.rank(*request(2**31, 20))
        return {"scores": [entry["score"] for entry in sorted(ranked, key=lambda entry: entry["corpus_id"])]}

    def measure(self) -> dict[str, float]:
        """Seconds of a request, by its number of documents."""
        self.rounds += 1
        times: dict[str, float] = {}
        started = time.perf_counter()
        for count in COUNTS:
            query, documents = request(1000 * self.rounds + count, count)
            with Clock(times, str(count)):
                self.model.rank(query, documents)
        return times | {"run": time.perf_counter() - started}


def with_head(encoder: str, folder: Path) -> None:
    """Writes a cross-encoder of one label: an encoder with pooler and head of random weights."""
    from srsjax.data.store.tokenizer import load_tokenizer
    from srsjax.model import hf, hf_export
    from srsjax.model.spec import ModelSpec

    bert = hf.load_config(encoder)
    spec = ModelSpec(bert)
    params, _ = hf.load_weights(encoder, bert)
    rng, width = np.random.default_rng(0), bert.hidden_size
    for path, count in (("bert/pooler", width), ("head/dense", 1)):
        params[f"{path}/kernel"] = rng.standard_normal((width, count)).astype(np.float32) / width**0.5
        params[f"{path}/bias"] = np.zeros(count, np.float32)
    hf_export.save_pairs(folder, params, spec, load_tokenizer(encoder), bert.max_positions)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder or hub name of a cross-encoder")
    parser.add_argument("--encoder", default="", help="folder or hub name of an encoder, instead of --model")
    parser.add_argument("--max_length", type=int, default=128, help="most tokens of a pair, of both systems")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if bool(options.model) == bool(options.encoder):
        parser.error("expected one of --model and --encoder")
    with ExitStack() as stack:
        folder = options.model
        if options.encoder:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            with_head(options.encoder, Path(folder))
        about = {"folder": folder, "max_length": options.max_length}
        workers = {
            name: stack.enter_context(Worker(Path(__file__), options.threads, about | {"system": name}))
            for name in SYSTEMS
        }
        print(f"scores apart: {check_gate(workers, TOLERANCE)[SYSTEMS[1]]['scores']:.1e} of their spread")
        rounds = measure(workers, options.rounds)
    ours, theirs = SYSTEMS
    heads = "".join(f"{name + ' median':>30}{'p99':>8}" for name in SYSTEMS)
    print(f"{'documents':>9}{heads}   ratio (quartiles)")
    for count in map(str, COUNTS):
        line = f"{count:>9}"
        for name in SYSTEMS:
            median, last = (1000 * np.percentile([times[name][count] for times in rounds], q) for q in (50, 99))
            line += f"{median:>27.1f} ms{last:>8.1f}"
        median, low, high = quartiles([times[theirs][count] / times[ours][count] for times in rounds])
        print(f"{line}   {median:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        serve(System(**arguments()))
    else:
        main()
