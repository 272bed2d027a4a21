"""Writes `report.html`: what was asked, how good the model is and how sure that is, for whom not, and at what cost.

One file without scripts, styles or pictures from elsewhere: it opens offline and can be sent to anyone. Every number of
a chart is in a table too. Texts of the data are escaped; those of private features are not there.
"""

from __future__ import annotations

import functools
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srsjax import __version__
from srsjax.config import TrainConfig, columns
from srsjax.config_io import to_json
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.files import write_text
from srsjax.metrics import report
from srsjax.metrics.table import row_of
from srsjax.model.spec import Outputs
from srsjax.objectives import objective, objectives
from srsjax.reporting.examples import Example, Reader, most_expensive
from srsjax.reporting.figures import Figure, figures, learning_curves
from srsjax.runs.assessment import Assessment
from srsjax.runs.attribution import Explainer
from srsjax.runs.calibration import Calibration
from srsjax.runs.monitor import resolve_monitor
from srsjax.runs.run_folder import RunFolder, changed_fields
from srsjax.runs.slices import gaps_said, slice_rows
from srsjax.training import goodput
from srsjax.training.log import read_lines
from srsjax.training.show import command

MOST_CHARACTERS = 300
"""Of a value that is shown."""


@dataclass(frozen=True)
class SplitPart:
    """What the page says of a split."""

    name: str
    assessment: Assessment
    figures: Mapping[str, Sequence[Figure]]
    """By task."""
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class Shown:
    """A table of the page."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    words: int = 1
    """First columns that hold words, not numbers."""


def split_part(
    name: str,
    config: TrainConfig,
    outputs: Sequence[Outputs],
    calibration: Calibration,
    split: Split,
    items: Items,
    logits: np.ndarray,
    assessment: Assessment,
    text: TextEncoder,
    vocabularies: Mapping[str, Sequence[str]],
    explainer: Explainer | None = None,
) -> SplitPart:
    """Figures and examples of a split, from the logits [M, K] of the model itself; with reasons, given an explainer."""
    tasks, settings = config.schema.tasks, config.evaluate
    calibrated = calibration.apply(config.schema, outputs, split, items, logits)
    made_of = functools.partial(report.of_split, threshold=settings.threshold, ndcg_at=settings.ndcg_at)
    drawn = {}
    for t, (made, own) in enumerate(objectives(tasks, outputs)):
        of = made_of(made.measured(calibrated[:, own]), split, t)
        changed = calibration.changes(made.task.name)
        before = made_of(made.measured(logits[:, own]), split, t) if changed else None
        if len(of.logits):
            drawn[made.task.name] = list(figures(of, made.families, before, outputs[t].classes))
    reader = Reader(config.schema, split, items, text, vocabularies)
    return SplitPart(name, assessment, drawn, most_expensive(reader, outputs, calibrated, explainer=explainer))


def write_page(
    path: Path,
    folder: RunFolder,
    config: TrainConfig,
    manifest: Mapping[str, Any],
    parts: Sequence[SplitPart],
    best: int,
) -> None:
    """Writes the page of a run.

    Args:
      manifest: of the store, or of the files that were evaluated.
      parts: the splits, the most telling one first.
      best: the step of the best checkpoint.
    """
    lines = read_lines(folder.metrics_file)
    seconds = goodput.account(goodput.read(folder.goodput_file)) if folder.goodput_file.exists() else {}
    page = _template().render(
        title=folder.path.resolve().name,
        asked=asked(config, manifest),
        data=data_tables(config, manifest),
        parts=[_of_part(config, part) for part in parts],
        curves=list(learning_curves(lines, resolve_monitor(config).key, best)),
        time=goodput.said(seconds) if seconds else "",
        versions=versions(),
        changes=changes(config),
        commands=commands(folder, config),
    )
    write_text(path, page)


def asked(config: TrainConfig, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model is for, as names and values."""
    model, found = config.model, []
    for task in config.schema.tasks:
        label = task.column or task.name
        positive = f", positive is {task.positive}" if task.positive else ""
        found.append((f"task {task.name}", f"{task.kind}, label column {label}{positive}"))
    for side in ("context", "candidate"):
        names = [f"{f.name} ({type(f).__name__.lower()})" for f in getattr(config.schema, side)]
        found.append((side, ", ".join(names) or "none"))
    found.append(("log", ", ".join(file["name"] for file in manifest["input"]["log"]["files"]) or "none"))
    weights = f"weights of {model.pretrained}" if model.pretrained else "fresh weights"
    combined = f", features combined by {model.combine}"
    found.append(("model", f"{model.interaction}, {weights}{combined}, seed {config.seed}"))
    return found


def data_tables(config: TrainConfig, manifest: Mapping[str, Any]) -> list[Shown]:
    """Counts and label rates of the splits, and what was cut, missing or left out."""
    splits = {name: of for name, of in manifest["splits"].items() if of["impressions"]}
    rows = [[key, *(f"{of[key]:,}" for of in splits.values())] for key in ("impressions", "candidates")]
    for task in config.schema.tasks:
        labels = [of.get("labels", {}).get(task.name, {}) for of in splits.values()]
        rows.append([f"{task.name}, labels known", *(f"{of.get('known', 0):,}" for of in labels)])
        means = [of.get("weighted_mean") for of in labels]
        if any(mean is not None for mean in means):
            rows.append([f"{task.name}, mean label", *("-" if mean is None else f"{mean:.4f}" for mean in means)])
    by, hides = columns(config.data.split.column), Sources(config.schema, config.data).hides
    if (periods := manifest.get("periods")) and not any(map(hides, by)):
        for end, words in enumerate(("from", "to")):
            rows.append([words, *(time_said(periods[name][end]) if periods.get(name) else "-" for name in splits)])
    found = [Shown("Splits", ["of the rows", *splits], rows)]
    read = manifest.get("rows", {})
    lost = [["rows read", f"{read.get('read', 0):,}"]] if read else []
    lost += [[f"left out: {reason}", f"{count:,}"] for reason, count in read.get("left_out", {}).items()]
    for key, words in (
        ("missing", "missing"),
        ("cut", "cut to the token budget"),
        ("unseen_classes", "classes unseen"),
    ):
        lost += [[f"{name}: {words}", _short(count)] for name, count in manifest.get(key, {}).items()]
    if manifest.get("set_aside"):
        lost.append(["bad rows set aside", f"{manifest['set_aside']:,}"])
    return [*found, Shown("Cut, missing and left out", ("what", "rows"), lost)]


def metric_table(config: TrainConfig, of: Assessment, caption: str) -> Shown:
    """All metrics with intervals, beside what the model is compared with."""
    columns = {"model": dict(of.model), **of.references}
    others = [name for name in columns if name != "model"]
    rows = []
    for key in report.metric_names(columns):
        ends = of.intervals.get(key)
        row = [key, report.cell(key, of.model), report.interval_text(*ends) if ends else "-"]
        row += [report.cell(key, of.uncalibrated) if key in of.uncalibrated else "-"] * bool(of.uncalibrated)
        rows.append(row + [report.cell(key, columns[name]) for name in others])
    headings = ["metric", "model", "95 % interval", *(["before calibration"] * bool(of.uncalibrated))]
    notes = [*of.differences_said(), *filter(None, [report.gap_said(columns)])]
    if of.intervals:
        notes.append(
            "Intervals are those of other users of the same kind; that of ece is corrected for its bias. Another seed "
            "may move a number further."
        )
    return Shown(caption, [*headings, *(report.HEADINGS.get(name, name) for name in others)], rows, notes)


def slice_tables(of: Assessment) -> list[Shown]:
    """The metrics by slice."""
    return [
        Shown(f"By {name}", *slice_rows(each), [f"largest gap of {line}" for line in gaps_said(each)])
        for name, each in of.slices.items()
    ]


def class_tables(of: Assessment) -> list[Shown]:
    """The classes of lowest F1 of each multiclass task."""
    found = []
    for task, classes in of.classes.items():
        names = report.shown_classes(classes)
        keys = ("precision", "recall", "f1")
        plain: dict[str, dict] = {name: dict(classes[name]) for name in names}
        rows = [[n, *(f"{plain[n][key]:.4f}" for key in keys), f"{plain[n]['support']:,.0f}"] for n in names]
        caption = f"Classes of {task}" + (", those of lowest F1" if len(names) < len(classes) else "")
        found.append(Shown(caption, ("class", *keys, "weight"), rows))
    return found


def headlines(config: TrainConfig, of: Assessment) -> list[tuple[str, str, str, str]]:
    """The numbers a person looks for first: name, value, interval, and what it is beside."""
    found = []
    for task in config.schema.tasks:
        prefix = "" if task is config.schema.tasks[0] else f"{task.name}/"
        keys = [key for key in of.model if key.rpartition("/")[0] == prefix.rstrip("/") and row_of(key).headline]
        monitor = prefix + row_of(objective(task).monitor).key(config.evaluate.ndcg_at)
        keys = [key for key in dict.fromkeys([monitor, *keys]) if key in of.model]
        for key in keys[:3]:
            ends = of.intervals.get(key)
            beside = [
                f"{report.HEADINGS.get(name, name)} {report.cell(key, values)}"
                for name, values in of.references.items()
                if key in values
            ]
            interval = report.interval_text(*ends) if ends else ""
            found.append((key, report.cell(key, of.model), interval, ", ".join(beside)))
    return found


def versions() -> list[tuple[str, str]]:
    """What computed this, and on what."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return [
        ("srsjax", __version__),
        *((name, version(name)) for name in names),
        ("python", platform.python_version()),
        ("devices", devices),
    ]


def changes(config: TrainConfig) -> list[tuple[str, str, str]]:
    """Settings that are not the defaults: name, default and value; schema and tables are shown apart."""
    found = changed_fields(to_json(TrainConfig()), to_json(config))
    kept = [each for each in found if not each[0].startswith(("schema", "data.log", "data.catalogues", "run_dir"))]
    return [(name, _short(default), _short(value)) for name, default, value in kept]


def commands(folder: RunFolder, config: TrainConfig) -> list[tuple[str, str]]:
    """What repeats this, and what comes next."""
    files = config.data.log.files
    new, run = (files if isinstance(files, str) else files[0]), shlex.quote(str(folder.path))
    return [
        ("train again", f"{command('train')} --config {run}/config.json --run_dir NEW"),
        ("evaluate again", f"{command('evaluate')} --run {run} --split test"),
        ("score", f"{command('score')} --run {run} --input {shlex.quote(new)} --output scores/"),
    ]


def _of_part(config: TrainConfig, part: SplitPart) -> dict[str, Any]:
    of = part.assessment
    return {
        "name": part.name,
        "headlines": headlines(config, of),
        "metrics": metric_table(config, of, f"Metrics of the {part.name} split"),
        "figures": part.figures,
        "classes": class_tables(of),
        "slices": slice_tables(of),
        "examples": part.examples,
    }


DATES = (1e8, 4.1e9)
"""Numbers between are taken for seconds since 1970 (years 1973 to 2099); others are shown as they are."""


def time_said(seconds: float) -> str:
    """A time of the data: `2024-03-01 12:00`, in UTC, or the number where it can be none."""
    if not DATES[0] <= seconds <= DATES[1]:
        return f"{seconds:g}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _short(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, Mapping):
        said = ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    elif isinstance(value, float):
        said = f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        said = f"{value:,}"
    else:
        said = str(value)
    return said if len(said) <= MOST_CHARACTERS else f"{said[:MOST_CHARACTERS]}…"


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # a tenth of a second, for few commands

    loader = PackageLoader("srsjax.reporting", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja")
