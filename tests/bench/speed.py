"""Speed beside what a user would run instead, on this machine's CPU: one table a command.

    python tests/bench/speed.py step --out speed
    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/speed.py finetune --out speed

Every system is a worker process on the same cores, with the same weights and the same texts; before anything is timed
the workers must agree on the logits. Times are medians over rounds, ratios are taken within a round (`paired.py`).
`<out>/<table>.json` holds every time, `<out>/<table>.md` the table. Peers: the extra `[bench]`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paired import Worker, check_gate, measure, quartiles
from speed_inputs import save_bert_base, training_flops

HERE = Path(__file__).parent
SCRIPTS = {"srsjax": HERE / "speed_srsjax.py", "torch": HERE / "speed_torch.py"}


@dataclass(frozen=True)
class Case:
    """One comparison: rows of a table."""

    title: str
    systems: dict[str, tuple[str, dict]]
    """Script (of `SCRIPTS`) and arguments of each worker, by the name shown; srsjax is the first."""
    tolerances: dict[str, float]
    """Of the gate, see `paired.check_gate`."""
    targets: dict[str, tuple[float, float]]
    """Floor and goal of srsjax's speed over each other system."""
    flops: float
    """Of one measurement, by `speed_inputs.training_flops`."""
    examples: int
    """Of one measurement."""


def step(args: argparse.Namespace) -> Iterator[Case]:
    """BERT-base training step over full rows of 128 tokens."""
    folder = args.out / "weights" / "bert-base"
    if not folder.exists():
        save_bert_base(folder)
    arguments = {"system": "step", "folder": str(folder), "rows": args.rows, "tokens": 128, "steps": 1}
    yield Case(
        title=f"BERT-base training step, {args.rows} rows of 128",
        systems={"srsjax": ("srsjax", arguments), "transformers bfloat16": ("torch", arguments)},
        # float32 shows that the two are the same function: rounding alone is 1e-5 of the logits' spread. bfloat16 need
        # only show that no product is wrong: random weights give logits that differ little (0.05 around -0.3), of
        # which its rounding, 0.4 % a number, is a tenth.
        tolerances={"float32 logits": 1e-3, "logits": 0.25, "loss": 0.01, "gradient norm": 0.02},
        targets={"transformers bfloat16": (1.1, 1.4)},
        flops=training_flops(folder, args.rows * 128, args.rows * 128**2),
        examples=args.rows,
    )


TABLES = {"step": step}


def run(case: Case, rounds: int, threads: int) -> dict:
    """Measures a case: every time, medians, ratios of srsjax with quartiles, share of the measured peak."""
    print(case.title, flush=True)
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(SCRIPTS[script], threads, arguments))
            for name, (script, arguments) in case.systems.items()
        }
        differences = check_gate(workers, case.tolerances)
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
        times = measure(workers, rounds)
    first = next(iter(workers))
    peak = max(peaks.values())
    result: dict = {"title": case.title, "examples": case.examples, "flops": case.flops, "threads": threads}
    result |= {"gate": differences, "peaks": peaks, "rounds": times, "systems": {}}
    for name in workers:
        median, low, high = quartiles([each[name]["train"] for each in times])
        record = {"seconds": median, "quartiles": [low, high], "share of peak": case.flops / median / peak}
        if name != first:
            ratios = [each[name]["train"] / each[first]["train"] for each in times]
            record |= {"ratio": quartiles(ratios), "targets": case.targets[name]}
        result["systems"][name] = record
    return result


def markdown(results: list[dict]) -> str:
    """A line for each case and system."""
    lines = [
        "| | system | seconds (quartiles) | examples/s | of peak | speed of srsjax over it (quartiles) | floor, goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, system in result["systems"].items():
            low, high = system["quartiles"]
            cells = [result["title"], name, f"{system['seconds']:.2f} ({low:.2f} to {high:.2f})"]
            cells += [f"{result['examples'] / system['seconds']:.1f}", f"{system['share of peak']:.0%}"]
            if "ratio" in system:
                median, low, high = system["ratio"]
                cells += [f"**{median:.2f}** ({low:.2f} to {high:.2f})", "{:g}, {:g}".format(*system["targets"])]
            else:
                cells += ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    peak = max(peak for result in results for peak in result["peaks"].values())
    lines += ["", f"Peak: {peak / 1e9:.0f} GFLOP/s, the best worker's bfloat16 product of two 4096 x 4096 squares."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--out", type=Path, default=Path("speed"), help="folder of tables, times and model folders")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores of every system")
    parser.add_argument("--rows", type=int, default=16, help="rows of the step table")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = [run(case, args.rounds, args.threads) for case in TABLES[args.table](args)]
    (args.out / f"{args.table}.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.out / f"{args.table}.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
