"""The model card of a run, and what that of an export says of the run it came from: one text, made without the network.

Numbers are those of `report.json` and of the manifest. Values of private features are nowhere in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jax
from huggingface_hub import EvalResult, ModelCard

from srsjax.config import TrainConfig
from srsjax.data.kinds import is_text
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.errors import InputError
from srsjax.metrics.table import row_of
from srsjax.model import hf_card
from srsjax.model.hf_card import Described, Measured, code, plain
from srsjax.model.spec import ModelSpec
from srsjax.reporting import page
from srsjax.reporting.card_use import how_to_load, intended_use
from srsjax.reporting.page import Shown
from srsjax.runs.assessment import Assessment
from srsjax.runs.calibration import Calibration, TaskCalibration
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.spec import layout_of
from srsjax.runs.weak_slices import measured_groups, weak_groups
from srsjax.training import goodput
from srsjax.training.log import read_lines

TASKS = {
    "binary": "text-classification",
    "multiclass": "text-classification",
    "regression": "tabular-regression",
    "listwise": "text-ranking",
    "pairwise": "text-ranking",
    "contrastive": "text-ranking",
}
"""What the hub calls a task, by kind; of a model without text the first two are tabular."""


@dataclass(frozen=True)
class Facts:
    """What is known of a finished run."""

    folder: RunFolder
    config: TrainConfig
    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    """What `report.json` holds."""
    calibration: Calibration
    parameters: int
    notes: Sequence[str] = field(default_factory=tuple)
    """What is otherwise with an export than with the run."""

    @property
    def split(self) -> str:
        """The split that the metrics are of: `test`, else `valid`; empty where neither has rows."""
        return next((name for name in ("test", "valid") if self.result.get(name)), "")

    @property
    def assessment(self) -> Assessment:
        """Of that split. Raises InputError where the report is damaged."""
        try:
            return Assessment.read(self.result, self.split) if self.split else Assessment({})
        except (AttributeError, TypeError) as error:
            raise InputError(f"{self.folder.report_file}: damaged, expected what train wrote ({error!r})") from error


def about_run(
    folder: RunFolder, config: TrainConfig, spec: ModelSpec, text: TextEncoder, manifest: Mapping[str, Any]
) -> Described:
    """What a card of a run is about."""
    fills = manifest["fitted"]["fills"]
    name, run = folder.path.resolve().name, str(folder.path)
    return Described(name, run, spec, config.schema, text, layout_of(spec, text), fills)


def run_card(facts: Facts, about: Described) -> ModelCard:
    """The card of a run folder."""
    pipeline = hf_card.LIBRARY[about.form][1] if about.spec.reads_text else None
    first, use = hf_card.described(about), [*hf_card.inputs(about), *how_to_load(facts.config, about)]
    return hf_card.assembled(about, "srsjax", pipeline, (), first, use, measured(facts))


def measured(facts: Facts) -> Measured:
    """What any card says of the run."""
    of = facts.assessment
    sections = [
        *(["## Of this export", _listed(facts.notes)] if facts.notes else []),
        *("## Intended use", intended_use(facts.config)),
        *("## Data", data(facts)),
        *("## Metrics", metrics(facts, of)),
        *("## Calibration", calibration(facts, of)),
        *("## Where it is weak", weak(facts, of)),
        *("## Size and speed", size(facts)),
    ]
    last = ["## To repeat it", *repeat(facts)]
    return Measured(eval_results(facts, of), sections, last, _base_model(facts.config))


def eval_results(facts: Facts, of: Assessment) -> list[EvalResult]:
    """The metrics of the split that say how good the model is, with their intervals."""
    tasks = {task.name: task for task in facts.config.schema.tasks}
    first, reads_text = facts.config.schema.tasks[0].name, _reads_text(facts.config)
    found = []
    for key, value in of.model.items():
        task = key.rpartition("/")[0] or first
        if not row_of(key).better:
            continue
        kind = TASKS[tasks[task].kind]
        ends = of.intervals.get(key)
        found.append(
            EvalResult(
                task_type=kind if reads_text else kind.replace("text-", "tabular-"),
                task_name=task,
                dataset_type="tabular",
                dataset_config=task,  # results of one configuration are one entry, with one task
                dataset_name=_log_files(facts.manifest) or "log",
                dataset_split=facts.split,
                dataset_revision=str(facts.manifest["fingerprint"]),
                metric_type=key.rpartition("/")[2],
                metric_name=key,
                metric_value=float(value),
                metric_args={"interval_95": [float(end) for end in ends]} if ends else None,
            )
        )
    return found


# ---------------------------------------------------------------------------------------------- sections


def data(facts: Facts) -> str:
    """Files, split, counts, periods and label rates; what was cut and left out."""
    config, manifest = facts.config, facts.manifest
    simulated = ", simulated: nobody clicked" if config.data.shop.folder else ""
    lines = [f"Log: {plain(_log_files(manifest)) or 'none'}{simulated}. {_split_said(config)}"]
    counts, lost = page.data_tables(config, manifest)
    lines.append(markdown(counts))
    return "\n\n".join([*lines, *([markdown(lost)] if lost.rows else [])])


def metrics(facts: Facts, of: Assessment) -> str:
    """All metrics with intervals beside what they compare with."""
    if not facts.split:
        return "None: neither test nor validation has rows."
    chosen = "" if facts.split == "test" else "; it also chose the checkpoint and the calibration"
    shown = page.metric_table(facts.config, of, f"Of the {facts.split} split{chosen}")
    known = "oracle" in of.references
    best = "" if known else "The best that any model could attain on these data is not known."
    return "\n\n".join(filter(None, [markdown(shown), best, *map(markdown, page.class_tables(of))]))


def calibration(facts: Facts, of: Assessment) -> str:
    """Which map, and error and log loss before and after it."""
    rows = []
    for task in facts.config.schema.tasks:
        prefix = "" if task is facts.config.schema.tasks[0] else f"{task.name}/"
        if task.kind not in ("binary", "multiclass"):
            rows.append([task.name, "no probability", *["-"] * 4])
            continue
        own = facts.calibration.tasks.get(task.name, TaskCalibration())
        by = f", and by {facts.calibration.slice}" if own.slices else ""
        row = [task.name, f"{own.method}{by}"]
        for name in ("ece", "log_loss" if task.kind == "binary" else "cross_entropy"):
            after = of.model.get(prefix + name)
            before = of.uncalibrated.get(prefix + name, after)
            row += [_number(before), _number(after)]
        rows.append(row)
    headings = ("task", "map", "ECE before", "ECE after", "log loss before", "log loss after")
    caption = f"Fitted on the validation split, measured on {facts.split or 'no'} rows"
    lines = [markdown(Shown(caption, headings, rows))]
    lines += [f"{code(name)}: {plain(_chosen(own))}." for name, own in facts.calibration.tasks.items() if own.found]
    rate = facts.config.evaluate.negatives_rate
    if rate != 1:
        share = f"{rate:g}" if rate else "negatives / items of the catalogue"
        lines.append(
            f"Negatives were sampled at a rate of {share}: srsjax adds its logarithm to the log-odds of binary tasks "
            "when it scores; these numbers, and exported models, are without it."
        )
    return "\n\n".join(lines)


def weak(facts: Facts, of: Assessment) -> str:
    """Groups of slices that are surely worse than the whole, or whose mean prediction is surely off."""
    groups, fairness = measured_groups(of), facts.config.fairness
    if not groups:
        return "None measured."
    names = ", ".join(code(name) for name in dict.fromkeys(group.slice for group in groups))
    rows = [
        [group.slice, group.name, f"{group.rows:,}", group.key, group.said, group.whole, group.calibration]
        for group in weak_groups(of, groups)
    ]
    said = f"{len(groups)} groups of {names} were measured, those with 100 rows at least."
    if fairness.by:
        said += f" Training was asked to treat the groups of {code(fairness.by)} alike, by {fairness.method}."
    if not rows:
        return f"{said} None is worse than the whole split by more than its 95 % interval."
    headings = ("slice", "group", "rows", "metric", "in the group", "in the whole split", "predicted less label")
    caption = "Groups whose 95 % interval is all on the worse side of the whole split, or of no miscalibration"
    return f"{said}\n\n{markdown(Shown(caption, headings, rows))}\n\nOf many groups some differ by chance alone."


def size(facts: Facts) -> str:
    """Parameters, and how fast the training was where its log is there."""
    lines = [f"{facts.parameters:,} parameters, {facts.parameters * 4 / 2**20:,.1f} MiB as float32."]
    logged = [line for line in read_lines(facts.folder.metrics_file) if line["kind"] == "train"][1:]  # compiles
    speeds, tokens = (
        [line[f"{what}_per_second"] for line in logged if _finite(line.get(f"{what}_per_second"))]
        for what in ("examples", "tokens")
    )
    if speeds and tokens:
        lines.append(
            f"Training: {median(speeds):,.0f} examples and {median(tokens):,.0f} tokens a second, the median of "
            f"{len(speeds)} log lines, at {facts.result['steps']:,} steps."
        )
    if facts.folder.goodput_file.exists():
        lines.append(plain(goodput.said(goodput.account(goodput.read(facts.folder.goodput_file)))) + ".")
    lines.append("`python -m srsjax.compare --cost` measures the speed of scoring.")
    return "\n".join(f"* {line}" for line in lines)


def repeat(facts: Facts) -> list[str]:
    """Commands, and versions of what computed it."""
    commands = "\n".join(line for _, line in page.commands(facts.folder, facts.config))
    by = "This card was written with " + ", ".join(f"{name} {value}" for name, value in page.versions()[:-1])
    return [f"```bash\n{commands}\n```", f"{plain(by)}, on {jax.device_count()} x {jax.devices()[0].device_kind}."]


# ---------------------------------------------------------------------------------------------- Markdown


def markdown(shown: Shown) -> str:
    """A table with its caption and notes; cells are `plain`."""
    lines = ["| " + " | ".join(map(plain, shown.headings)) + " |", "|" + "---|" * len(shown.headings)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in shown.rows]
    return "\n\n".join([f"**{plain(shown.caption)}**", "\n".join(lines), *map(plain, shown.notes)])


def _chosen(own: TaskCalibration) -> str:
    """How a map was chosen, or why none was."""
    if "why" in own.found:
        return str(own.found["why"])
    gains = [
        f"{name} {each['gain']:+.4f} (standard error {each['error']:.4f})"
        for name, each in own.found.items()
        if isinstance(each, Mapping) and "gain" in each
    ]
    kept = "kept for its gain" if own.map is not None else "no gain of more than two standard errors"
    return f"{kept}; gains in log loss on rows that a map was not fitted on: {', '.join(gains) or 'none measured'}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------- words


MOST_FILES = 3


def _log_files(manifest: Mapping[str, Any]) -> str:
    names = [file["name"] for file in manifest["input"]["log"]["files"]]
    more = len(names) - MOST_FILES
    return ", ".join([*names[:MOST_FILES], *([f"{more} more"] if more > 0 else [])])


def _split_said(config: TrainConfig) -> str:
    split = config.data.split
    columns = (split.column,) if isinstance(split.column, str) else split.column
    by = ", ".join(map(code, columns))
    if split.by == "column":
        return f"Column {by} says which rows train, validate and test."
    valid, test = (f"{100 * share:g} %" for share in (split.valid, split.test))
    if split.by == "time":
        return f"By time, column {by}: the newest {test} test, the {valid} before them validate."
    return f"By a hash{' of ' if by else ''}{by}: {test} test, {valid} validate."


def _reads_text(config: TrainConfig) -> bool:
    return any(is_text(each) for each in (*config.schema.context, *config.schema.candidate))


def _base_model(config: TrainConfig) -> str:
    """The hub name of the weights that training started from; empty where they came from a folder, or are fresh."""
    name = config.model.pretrained.partition("@")[0]
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists() else ""
