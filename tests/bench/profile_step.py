"""Where the time of BERT-base's training step goes on CPU: 16 rows of 128 tokens, dropout 0.1, `model.dtype auto`.

    python tests/bench/profile_step.py --out profile
    python tests/bench/profile_step.py --out profile --default_heap    # without `srsjax.cpu`

The wall time of one step, by what the compiled program did: of each moment the operations that ran then get equal
parts. The library of fast products uses all cores within one operation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
from speed_inputs import save_bert_base
from speed_srsjax import Step

from srsjax.cpu import keep_freed_memory
from srsjax.runs.sharding import put_batch

KINDS = {
    "products with weights": r" = \w+\[\d+,\d+\]\S* dot\(",
    "products in attention": r" dot\(",
    "random bits of dropout": r" = \(?(s32\[\], )?u32\[",
    "clipping and AdamW": r'op_name="jit\(train_step\)/(?!.*jvp)',
    "copies and transposes": r"^ *(ROOT )?%\w*(copy|transpose)",
}
"""Kind of an operation by the text of its instruction and of what that calls; the first that matches."""
OTHER, NOTHING = "element-wise, softmax, norms", "nothing (gaps, end of a step)"


def step_kinds(program: str) -> dict[str, str]:
    """The kind of every instruction of a compiled program, by name."""
    bodies = {match[1]: match[0] for match in re.finditer(r"^%([\w.-]+) \(.*?^}", program, re.M | re.S)}
    found = {}
    for line in re.findall(r"^ +(?:ROOT )?%.*", program, re.M):
        name = re.match(r" +(?:ROOT )?%([\w.-]+) =", line)
        called = re.search(r"(?:calls|to_apply)=%([\w.-]+)", line)
        text = line + "\n" + (bodies.get(called[1], "") if called else "")
        if name:
            found[name[1]] = next((kind for kind, mark in KINDS.items() if re.search(mark, text, re.M)), OTHER)
    return found


def own_intervals(events: list[tuple[float, float, str]]) -> Iterator[tuple[float, float, str]]:
    """What each event of one thread, (start, end, name), did itself: events inside of it are left out."""
    stack: list[tuple[float, str]] = []  # (end, name)
    now = 0.0
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while stack and stack[-1][0] <= start:
            yield now, stack[-1][0], stack[-1][1]
            now = stack.pop()[0]
        if stack:
            yield now, start, stack[-1][1]
        stack.append((end, name))
        now = start
    while stack:
        yield now, stack[-1][0], stack[-1][1]
        now = stack.pop()[0]


def shares(intervals: list[tuple[float, float, str]], kinds: dict[str, str]) -> dict[str, float]:
    """Seconds of each kind; intervals of one moment share it."""
    marks = sorted([(start, 1, name) for start, _, name in intervals] + [(end, -1, name) for _, end, name in intervals])
    running: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for (at, change, name), (then, *_) in itertools.pairwise(marks):
        running[name] += change
        active = [each for each, count in running.items() if count > 0 and each in kinds]
        for each in active:
            seconds[kinds[each]] += (then - at) / len(active) / 1e9
        if not active:
            seconds[NOTHING] += (then - at) / 1e9
    return dict(seconds)


def profile(folder: str) -> dict[str, float]:
    """Seconds of a step, by kind."""
    step = Step(folder, rows=16, tokens=128, steps=1)
    training = step.training
    batch = put_batch(training.session.mesh, step._batch(0), row_axis=1)
    kinds = step_kinds(training._step.lower(training.state, batch).compile().as_text())
    for _ in range(4):  # compiles, and the heap grows to its size
        step.measure()
    with tempfile.TemporaryDirectory() as trace:
        with jax.profiler.trace(trace):
            step.measure()
        data = jax.profiler.ProfileData.from_file(str(next(Path(trace).rglob("*.xplane.pb"))))
    intervals = []
    for line in (line for plane in data.planes for line in plane.lines if "XLA" in line.name):
        events = [(event.start_ns, event.start_ns + event.duration_ns, event.name) for event in line.events]
        intervals += [own for own in own_intervals(events) if own[1] > own[0]]
    return shares(intervals, kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("profile"), help="folder of weights and result")
    parser.add_argument("--default_heap", action="store_true", help="let the C library give memory back")
    args = parser.parse_args()
    folder = args.out.absolute() / "weights" / "bert-base"
    if not folder.exists():
        save_bert_base(folder)
    if not args.default_heap:
        keep_freed_memory()
    seconds = profile(str(folder))
    total = sum(seconds.values())
    lines = [
        f"| {kind} | {each:.2f} s | {each / total:.0%} |" for kind, each in sorted(seconds.items(), key=lambda x: -x[1])
    ]
    print("| | seconds | share |", "|---|---|---|", *lines, f"| together | {total:.2f} | |", sep="\n")
    (args.out / f"profile{'-default-heap' if args.default_heap else ''}.json").write_text(json.dumps(seconds, indent=2))


if __name__ == "__main__":
    main()
