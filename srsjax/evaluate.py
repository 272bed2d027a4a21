"""Evaluates a run: `python -m srsjax.evaluate --run runs/ctr --split test` (or `--input 'new/*.parquet'`).

Repeats the report of a split, or makes it for any labelled files with the columns of the training log. Several
processes (`srsjax.distributed`) divide the batches between them, and the first one reports.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from srsjax import cli, distributed
from srsjax.compilation import enable_cache
from srsjax.config import TrainConfig
from srsjax.console import say
from srsjax.cpu import keep_freed_memory
from srsjax.data.preparing.prepare import labelled_store
from srsjax.data.reading.files import expand
from srsjax.data.store.arrays import Split, Store
from srsjax.files import make_way, write_json
from srsjax.inference.scorer import Scorer
from srsjax.reporting.page import SplitPart, split_part, write_page
from srsjax.runs.assessment import assess
from srsjax.runs.attribution import QUICK_POINTS
from srsjax.runs.evaluation import run_split
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Quantize
from srsjax.runs.slices import check_slices

FIELDS = (
    r"data\.catalogues\.\d+\.(files|format|encoding|unknown)",
    r"data\.log\..*",
    r"data\.(store|engine|workers|shop\.folder)",
    r"tokenizer\.source",
    r"evaluate\.(threshold|ndcg_at|slices)",
    r"batch\.eval_rows",
    r"mesh\..*",
    r"model\.(dtype|attention)",
)
"""Fields of the run's config that evaluation reads."""


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    split: str = "test"
    """Split of the run's data: train, valid or test."""
    input: str = ""
    """Path or glob of labelled rows to evaluate instead of a split."""
    output: str = ""
    """JSON file to write the metrics to."""
    report: str = ""
    """HTML file to write a report to, as `report.html` of the run."""
    quantize: Quantize = "none"
    """`int8` computes with 8-bit weights, all that may be (`srsjax.compress` chooses them)."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_run(Arguments, argv, "evaluate", __doc__, FIELDS)
    check_slices(config)
    distributed.initialize()
    for output in filter(None, (arguments.output, arguments.report)):
        distributed.on_first(partial(make_way, output))
    enable_cache()
    keep_freed_memory()
    scorer = Scorer.load(arguments.run, config=config, unknown=None, quantize=arguments.quantize)
    title = arguments.input or f"{arguments.split} split"
    if arguments.input:
        manifest, part = on_files(scorer, config, arguments.input)
    else:
        manifest, part = on_split(scorer, RunFolder(arguments.run), config, arguments.split)
    found = part.assessment
    for table in (*found.tables(title), *found.slice_tables()):
        say(table)
    if arguments.output and distributed.is_first():
        write_json(Path(arguments.output), found.to_json())
    if arguments.report and distributed.is_first():
        folder = RunFolder(arguments.run)
        write_page(Path(arguments.report), folder, config, manifest, [part], folder.best_step())
        say(f"report: {arguments.report}")
    return 0


def on_split(scorer: Scorer, folder: RunFolder, config: TrainConfig, name: str) -> tuple[dict, SplitPart]:
    """The manifest of a run's data, and what is to be said of the model and of what it compares with on a split.

    Raises InputError as `run_split` does.
    """
    store, split = run_split(folder, config, name)
    return store.manifest, _of_model(scorer, config, name, split, store, store.split("train"))


def on_files(scorer: Scorer, config: TrainConfig, files: str) -> tuple[dict, SplitPart]:
    """As `on_split`, on labelled files, cleaned, joined and grouped as the run's data were."""
    with tempfile.TemporaryDirectory() as folder:
        store = labelled_store(scorer.encoder, replace(config.data.log, files=files), Path(folder) / "store")
        split = store.split("test")
        for task, count in store.manifest["unseen_classes"].items():
            say(f"{count:,} labels of {task} are of classes that no training row had: unknown, and left out")
        log = {"files": [{"name": path.name} for path in expand(files)]}
        return store.manifest | {"input": {"log": log}}, _of_model(scorer, config, "evaluated", split, store)


def _of_model(
    scorer: Scorer, config: TrainConfig, name: str, split: Split, store: Store, train: Split | None = None
) -> SplitPart:
    logits, encoder = scorer.raw_logits(split, store.items), scorer.encoder
    of = (config, scorer.session.spec.outputs, scorer.calibration, split, store.items, logits)
    assessment = assess(*of, train, say, encoder.fitted.vocabularies)
    alone = not scorer.session.mesh.is_multi_process
    explainer = replace(scorer.explainer, most_points=QUICK_POINTS) if alone else None
    return split_part(name, *of, assessment, encoder.text, encoder.fitted.vocabularies, explainer)


if __name__ == "__main__":
    cli.run(main)
