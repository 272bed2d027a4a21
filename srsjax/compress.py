"""Makes a run smaller and faster to score: `python -m srsjax.compress --run runs/ctr --output runs/ctr-int8`.

The encoder's weights and the tables of embeddings become 8-bit numbers, but for those groups that change the logits of
validation pairs too much (`--bound`). The output is a run folder that `score`, `evaluate`, `export --format stablehlo`
and `Scorer.load` take as any other; it cannot be trained on. What was gained and lost is printed and written to
`compression.json`: size, speed, metrics, and whether candidates keep their order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table as RichTable
from safetensors.numpy import save_file

from srsjax import cli
from srsjax.bounds import AtLeast1, Positive
from srsjax.compilation import enable_cache
from srsjax.config import Mesh
from srsjax.console import say
from srsjax.cpu import keep_freed_memory
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.files import atomic_folder, write_json
from srsjax.inference.scorer import Scorer
from srsjax.metrics.values import spearman
from srsjax.model.int8 import flat
from srsjax.objectives import predict
from srsjax.runs import quantization
from srsjax.runs.evaluation import run_store, split_metrics
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import with_params

SHOWN = ("auc", "gauc", "log_loss", "ndcg", "mrr", "accuracy", "f1", "rmse")
"""Metrics that are printed where a task has them; `compression.json` has all."""


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    output: str
    """Folder to write; it must not exist."""
    method: Literal["int8"] = "int8"
    """What weights become."""
    bound: Positive = 0.05
    """Largest change of the logits: its root mean square, in standard deviations of the logits."""
    pairs: AtLeast1 = 2000
    """Validation pairs that it is measured on, about so many."""
    split: str = "test"
    """Split of the run's data that the metrics are of."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    fields = (r"data\.(store|engine|workers|shop\.folder)", r"data\.log\..*", r"batch\.eval_rows", r"model\.dtype")
    config, arguments = cli.load_run(Arguments, argv, "compress", __doc__, fields)
    output, folder = Path(arguments.output).absolute(), RunFolder(arguments.run)
    if output.exists():
        raise InputError(f"{output}: exists already; choose another --output")
    if folder.compressed.exists():
        raise InputError(f"{folder.path}: compressed already; compress the run that it was made of")
    enable_cache()
    keep_freed_memory()
    config = replace(config, mesh=Mesh(1))
    store = run_store(folder, config)
    scorer = Scorer.load(folder.path, config=config)
    sample, split = _sample(store.split("valid"), arguments.pairs), store.split(arguments.split)
    if not len(sample) or not len(split):
        raise InputError(f"{folder.path}: no rows in the valid or {arguments.split} split to compare scores on")
    exact = Scorer.load(folder.path, config=replace(config, model=replace(config.model, dtype="float32")))
    choice = _choose(scorer, exact.params, sample, store.items, arguments.bound)
    smaller = _with_weights(scorer, quantization.quantized(exact.params, choice.kept))
    variants = {"float32": exact, scorer.session.compute.dtype.name: scorer, arguments.method: smaller}
    table = _compare(variants, split, store.items)
    with atomic_folder(output) as partial:
        _write(partial, folder, smaller, {"method": arguments.method, **asdict(choice), "table": table})
    _show(choice, table, arguments.split)
    say(f"compressed: {output}")
    return 0


def _sample(split: Split, pairs: int) -> Split:
    """Impressions in random order, until they have so many candidates."""
    order = np.random.default_rng(0).permutation(len(split))
    counts = np.cumsum(np.diff(split.candidates)[order])
    return split.take(np.sort(order[: int(np.searchsorted(counts, pairs)) + 1]))


def _with_weights(scorer: Scorer, params: dict[str, Any]) -> Scorer:
    """The same scorer with other weights."""
    session, params = with_params(scorer.session, params)
    return Scorer(scorer.config, session, params, scorer.encoder, scorer.shape, scorer.calibration)


def _choose(
    scorer: Scorer, params: Mapping[str, Any], sample: Split, items: Items, bound: float
) -> quantization.Choice:
    """`params` are float32."""
    names = quantization.groups(params)
    if not names:
        raise InputError("this model has neither an encoder nor tables of embeddings: there is nothing to compress")

    def logits(kept: tuple[str, ...]) -> np.ndarray:
        return _with_weights(scorer, quantization.quantized(params, kept)).raw_logits(sample, items)

    return quantization.choose(names, bound, logits, scorer.raw_logits(sample, items))


def _compare(variants: dict[str, Scorer], split: Split, items: Items) -> dict[str, dict[str, float]]:
    """By variant: size, speed and metrics, and the rank correlation with the scores of the first one."""
    table: dict[str, dict[str, float]] = {}
    expected: np.ndarray | None = None
    for name, scorer in variants.items():
        scorer.logits(split, items)  # compiles
        started = time.perf_counter()
        logits = scorer.logits(split, items)
        seconds = time.perf_counter() - started
        scores = predict(scorer.config.schema.tasks, scorer.session.spec.outputs, logits)
        expected = scores if expected is None else expected
        row = {"MiB": quantization.size(scorer.params) / 2**20, "pairs_per_second": len(logits) / seconds}
        row |= split_metrics(scorer.config, scorer.session.spec.outputs, split, logits)
        table[name] = row | {"rank_agreement": _agreement(scores, expected)}
    return table


def _agreement(scores: np.ndarray, expected: np.ndarray) -> float:
    """The smallest rank correlation (Spearman) of all tasks [M, T]."""
    weights = np.ones(len(scores))
    return min(spearman(*columns, weights) for columns in zip(scores.T, expected.T, strict=True))


def _write(folder: Path, run: RunFolder, scorer: Scorer, said: dict[str, Any]) -> None:
    """Writes a run folder with compressed weights instead of checkpoints."""
    made = RunFolder(folder)
    for file in (run.config_file, run.model_file, run.manifest_file, run.report_file):
        shutil.copy(file, folder / file.name)
    if run.calibration_file.exists():
        shutil.copy(run.calibration_file, made.calibration_file)
    shutil.copytree(run.tokenizer, made.tokenizer)
    arrays = {name: np.ascontiguousarray(array) for name, array in flat(scorer.params).items()}
    save_file(arrays, made.compressed)
    made.bind_all(run.best_step())
    write_json(folder / "compression.json", said)


def _show(choice: quantization.Choice, table: dict[str, dict[str, float]], split: str) -> None:
    """Prints what became of each group, and the table."""
    for name, each in choice.errors.items():
        say(f"{name}: logits change by {each:.4f} of their deviation{', kept' if name in choice.kept else ''}")
    say(f"all in 8 bits: {choice.whole:.4f}; chosen: {choice.error:.4f} (bound {choice.bound:g})")
    shown = [name for name in next(iter(table.values())) if name.rpartition("/")[2].partition("@")[0] in SHOWN]
    columns = ["MiB", "pairs_per_second", *shown, "rank_agreement"]
    made = RichTable(title=f"{split} split", title_justify="left")
    for column in ("weights", *(name.replace("_", " ") for name in columns)):
        made.add_column(column, justify="left" if column == "weights" else "right")
    for name, row in table.items():
        made.add_row(
            name, f"{row['MiB']:.1f}", f"{row['pairs_per_second']:,.0f}", *(f"{row[c]:.4f}" for c in columns[2:])
        )
    say(made)


if __name__ == "__main__":
    cli.run(main)
