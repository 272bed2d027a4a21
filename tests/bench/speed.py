"""Speed beside what a user would run instead, on this machine's CPU: one table a command.

    python tests/bench/speed.py step --out speed
    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/speed.py finetune --out speed
    python tests/bench/speed.py step --against ../other-checkout --dtype bfloat16     # srsjax beside another srsjax

Every system is a worker process on the same cores, with the same weights and the same texts; before anything is timed
the workers must agree on the logits. Times are medians over rounds, ratios are taken within a round (`paired.py`).
`<out>/<table>.json` holds every time, `<out>/<table>.md` the table. Peers: the extra `[bench]`.

Each system computes in its best precision on this CPU (`--dtype auto`): PyTorch in float32 or bfloat16 autocast,
whichever does a forward and a backward pass sooner; srsjax in what `model.dtype auto` is. The table says which.

`step`: forward, backward, clipping and AdamW of BERT-base, dropout 0.1, one text of 128 tokens a row. With `--against`,
of this checkout of srsjax and of another one, each run by its own `speed_srsjax.py`: a ratio of 0.98 to 1.02 is no
change. A checkout whose script does not take a dtype is not given one; it computes in bfloat16.
`interaction`: training with the context of an impression computed once for all its candidates (`shared`), and on top of
that candidates apart from it in the lower layers (`split`) or in all (`towers`), beside `cross`, which computes every
pair. Histories of 200 tokens, 20 candidates of 20.
`scoring`: the same impressions scored; `split`, which sees the context in the upper third of its layers, looks up what
it computes of an item alone.
`predict`: pairs of texts scored by a cross-encoder, tokenising included, at three mixes of lengths
(`predict_inputs.py`), beside sentence-transformers, ONNX Runtime and OpenVINO (`predict_peers.py` says what they need).
`finetune`: one epoch of MiniLM-L6 on the texts of a config. Training is timed on whole impressions drawn at random, at
least `--examples` candidates, and multiplied up to the epoch; tokenising happens once a run and is shared among its
epochs. srsjax's includes reading, checking and writing its store, the peers' only the tokenizer. Compiling is left out:
its first step takes some seconds longer, less from a warm compilation cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_examples import load_config, read_examples
from paired import Worker, check_gate, measure, quartiles
from predict_inputs import MIXES
from speed_inputs import CANDIDATES, save_bert_base, save_with_head, training_flops, training_subset

from srsjax.hardware import cpu

HERE = Path(__file__).parent
SCRIPTS = {
    "srsjax": HERE / "speed_srsjax.py",
    "torch": HERE / "speed_torch.py",
    "interactions": HERE / "speed_interactions.py",
    "pairs": HERE / "predict_srsjax.py",
    "peers": HERE / "predict_peers.py",
}


@dataclass(frozen=True)
class Case:
    """One comparison: rows of a table."""

    title: str
    systems: dict[str, tuple[Path, dict]]
    """Script and arguments of each worker, by the name shown; the first is the one compared."""
    tolerances: dict[str, float]
    """Of the gate, see `paired.check_gate`."""
    targets: dict[str, tuple[float, float]]
    """Floor and goal of the first system's speed over each other one; none where nothing was aimed at."""
    flops: float | None
    """Of one measurement, by `speed_inputs.training_flops`; None: every worker counts its own."""
    examples: int
    """That the seconds of the table are for."""
    scale: float = 1.0
    """Times what is measured."""
    prepared: float = 0.0
    """Share of the tokenising that counts."""

    def seconds(self, times: dict[str, float]) -> float:
        """The seconds of the table."""
        return self.scale * times["run"] + self.prepared * times.get("prepare", 0.0)


def step(args: argparse.Namespace) -> Iterator[Case]:
    """BERT-base training step over full rows of 128 tokens."""
    folder = args.out / "weights" / "bert-base"
    if not folder.exists():
        save_bert_base(folder)
    arguments = {"system": "step", "folder": str(folder), "rows": args.rows, "tokens": 128, "steps": 1}
    given = arguments | {"dtype": args.dtype}
    if args.against:
        script = args.against.resolve() / "tests" / "bench" / SCRIPTS["srsjax"].name
        peer, target = f"srsjax of {args.against}", (0.98, 1.02)
        other = (script, given if takes_dtype(script) else arguments)
    else:
        peer, target, other = "transformers", (1.1, 1.4), (SCRIPTS["torch"], given)
    yield Case(
        title=f"BERT-base training step, {args.rows} rows of 128",
        systems={"srsjax": (SCRIPTS["srsjax"], given), peer: other},
        # float32 shows that the two are the same function: rounding alone is 1e-5 of the logits' spread. bfloat16 need
        # only show that no product is wrong: random weights give logits that differ little (0.05 around -0.3), of
        # which its rounding, 0.4 % a number, is a tenth.
        tolerances={"float32 logits": 1e-3, "logits": 0.25, "loss": 0.01, "gradient norm": 0.02},
        targets={peer: target},
        flops=training_flops(folder, args.rows * 128, args.rows * 128**2),
        examples=args.rows,
    )


def takes_dtype(script: Path) -> bool:
    """Whether the `Step` of a checkout's `speed_srsjax.py` has an argument `dtype`."""
    return bool(re.search(r"^class Step:.*?def __init__\([^)]*\bdtype\b", script.read_text(), re.M | re.S))


def finetune(args: argparse.Namespace) -> Iterator[Case]:
    """MiniLM-L6 on texts of real lengths: transformers' Trainer, and a good loop in PyTorch."""
    from torch_finetune import encode

    folder = args.out / "weights" / "minilm"
    if not folder.exists():
        save_with_head(load_config("reviews").model.pretrained, folder)
    for name in args.configs:
        config = load_config(name)
        examples = read_examples(config)
        rows, total = training_subset(examples, args.examples), len(examples.rows("train"))
        lengths = encode(config, examples).lengths[rows]
        arguments = {"name": name, "folder": str(folder), "examples": args.examples, "dtype": args.dtype}
        systems = {"srsjax": "finetune", "Trainer": "trainer", "PyTorch loop": "loop"}
        yield Case(
            title=f"one epoch of {name}, {total} examples",
            systems={
                title: (SCRIPTS["srsjax" if title == "srsjax" else "torch"], {"system": system, **arguments})
                for title, system in systems.items()
            },
            # The same function in float32 on the same tokens; rounding alone is 1e-5 of the logits' spread.
            tolerances={"float32 logits": 1e-3},
            targets={"Trainer": (3, 5), "PyTorch loop": (1.4, 2)},
            flops=training_flops(folder, int(lengths.sum()), int(np.square(lengths).sum())),
            examples=total,
            scale=total / len(rows),
            prepared=1 / config.epochs,
        )


def interaction(args: argparse.Namespace) -> Iterator[Case]:
    """Training of each interaction beside `cross`."""
    yield _beside_cross(args, "training", "BERT-base", "shared", 4, (5, 8))
    yield _beside_cross(args, "training", "BERT-base", "split", 4)
    yield _beside_cross(args, "training", "BERT-base", "towers", 4)
    yield _beside_cross(args, "training", "MiniLM-L6", "shared", 16, (5, 8))


def scoring(args: argparse.Namespace) -> Iterator[Case]:
    """Scoring of each interaction beside `cross`."""
    yield _beside_cross(args, "scoring", "BERT-base", "split", 12, (3, 8), items=1000)
    yield _beside_cross(args, "scoring", "BERT-base", "shared", 12, items=1000)
    yield _beside_cross(args, "scoring", "BERT-base", "towers", 12, items=1000)
    yield _beside_cross(args, "scoring", "MiniLM-L6", "split", 48, (3, 8), items=1000)


def _beside_cross(
    args: argparse.Namespace, system: str, size: str, name: str, number: int, targets: tuple = (), **options
) -> Case:
    """`number`: impressions in one measurement."""
    arguments = {"system": system, "size": size, "number": number, "dtype": args.dtype, **options}
    return Case(
        title=f"{system} of {size}: {name} beside cross",
        systems={each: (SCRIPTS["interactions"], {"interaction": each, **arguments}) for each in (name, "cross")},
        tolerances={"packed equals alone": 0},
        targets={"cross": targets},
        flops=None,
        examples=number * CANDIDATES,
    )


def predict(args: argparse.Namespace) -> Iterator[Case]:
    """Scoring of pairs of texts, tokenising included, by the same MiniLM-L6 with a head."""
    folder = args.out / "weights" / "minilm"
    if not folder.exists():
        save_with_head(load_config("reviews").model.pretrained, folder)
    for mix, contexts in (("query and title", 48), ("query and description", 16), ("history and title", 3)):
        given = {"folder": str(folder), "mix": mix, "contexts": contexts}
        peers = {
            "CrossEncoder": {"system": "library", "dtype": "float32"},
            "CrossEncoder bfloat16": {"system": "library", "dtype": "bfloat16"},
            "ONNX Runtime int8": {"system": "onnxruntime", "dtype": "int8"},
            "OpenVINO int8": {"system": "openvino", "dtype": "int8"},
        }
        systems = {name: (SCRIPTS["peers"], given | own) for name, own in peers.items() if name not in args.without}
        yield Case(
            title=mix,
            systems={"srsjax": (SCRIPTS["pairs"], given | {"system": "srsjax", "dtype": args.dtype})} | systems,
            # Random heads give logits that differ little, of which the rounding of bfloat16 and int8 is a part.
            tolerances={"logits": 0.5},
            targets=dict(zip(peers, ((3, 5), (1.5, 2.5), (1.2, 1.5), (1.0, 1.5)), strict=True)),
            flops=None,
            examples=contexts * MIXES[mix].candidates,
        )


TABLES = {"predict": predict, "step": step, "finetune": finetune, "interaction": interaction, "scoring": scoring}


def run(case: Case, rounds: int, threads: int) -> dict:
    """Measures a case: every time, medians, ratios of the first system with quartiles, share of the measured peak."""
    print(case.title, flush=True)
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(script, threads, arguments))
            for name, (script, arguments) in case.systems.items()
        }
        # The worker of another checkout may not answer this.
        precisions = {
            name: worker.ask("precision") if "dtype" in case.systems[name][1] else "its own"
            for name, worker in workers.items()
        }
        print(", ".join(f"{name}: {precision}" for name, precision in precisions.items()), flush=True)
        differences = check_gate(workers, case.tolerances)
        before = {name: worker.ask("peak") for name, worker in workers.items()}
        times = measure(workers, rounds)
        peaks = {name: max(before[name], worker.ask("peak")) for name, worker in workers.items()}
        flops = {name: worker.ask("flops") if case.flops is None else case.flops for name, worker in workers.items()}
    first, peak = next(iter(workers)), max(peaks.values())
    result: dict = {"title": case.title, "examples": case.examples, "flops": flops, "threads": threads}
    result |= {"cpu": str(cpu()), "precisions": precisions}
    result |= {"gate": differences, "peaks": peaks, "rounds": times, "systems": {}}
    for name in workers:
        median, low, high = quartiles([case.seconds(each[name]) for each in times])
        run_alone = quartiles([each[name]["run"] for each in times])[0]
        record = {"seconds": median, "quartiles": [low, high], "share of peak": flops[name] / run_alone / peak}
        if name != first:
            record |= {"targets": case.targets[name]}
            record["ratio"] = quartiles([case.seconds(each[name]) / case.seconds(each[first]) for each in times])
            record["ratio of cpu"] = quartiles([each[name]["run cpu"] / each[first]["run cpu"] for each in times])
        result["systems"][name] = record
    return result


def markdown(results: list[dict]) -> str:
    """A line for each case and system."""
    lines = [
        "| | system | precision | seconds (quartiles) | examples/s | of peak | speed of the first (quartiles) | floor, "
        "goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, system in result["systems"].items():
            low, high = system["quartiles"]
            cells = [result["title"], name, result["precisions"][name]]
            cells += [f"{system['seconds']:.2f} ({low:.2f} to {high:.2f})"]
            cells += [
                f"{result['examples'] / system['seconds']:.1f}",
                f"{system['share of peak']:.0%}" if system["share of peak"] else "",
            ]
            if "ratio" in system:
                median, low, high = system["ratio"]
                cells += [
                    f"**{median:.2f}** ({low:.2f} to {high:.2f})",
                    ", ".join(f"{target:g}" for target in system["targets"]),
                ]
            else:
                cells += ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    peak = max(peak for result in results for peak in result["peaks"].values())
    told = f"CPU: {results[0]['cpu']}, {results[0]['threads']} threads. Peak: {peak / 1e9:.0f} GFLOP/s"
    lines += ["", f"{told}, the best worker's product of two 4096 x 4096 squares in its precision."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--out", type=Path, default=Path("speed"), help="folder of tables, times and model folders")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores of every system")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "int8"],
        default="auto",
        help="of every system; int8 of srsjax only",
    )
    parser.add_argument("--against", type=Path, help="another checkout of srsjax, the peer of the step table")
    parser.add_argument("--without", nargs="+", default=[], help="peers of the predict table to leave out")
    parser.add_argument("--rows", type=int, default=16, help="rows of the step table")
    parser.add_argument("--configs", nargs="+", default=["upworthy", "reviews", "esci"], help="of the finetune table")
    parser.add_argument("--examples", type=int, default=512, help="trained in one measurement of the finetune table")
    args = parser.parse_args()
    if args.against and args.table != "step":
        parser.error("--against: only for the step table")
    if args.dtype == "int8" and args.table != "predict":
        parser.error("--dtype int8: only for the predict table")
    args.out.mkdir(parents=True, exist_ok=True)
    results = [run(case, args.rounds, args.threads) for case in TABLES[args.table](args)]
    (args.out / f"{args.table}.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.out / f"{args.table}.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
