"""What a run prints for a person at its start and at its end."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from pathlib import Path

import jax
from rich.table import Column, Table

from srsjax.config import TrainConfig
from srsjax.console import Console
from srsjax.data.batches.layout import BatchShape
from srsjax.data.kinds import is_text
from srsjax.distributed import devices_in_use
from srsjax.errors import InputError
from srsjax.objectives import losses
from srsjax.runs.assessment import Assessment
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Session

MUCH_PADDING = 0.05
"""Share of padding that is worth a word."""


def start(
    console: Console, config: TrainConfig, session: Session, batches, shape: BatchShape, cache: Path | None
) -> None:
    """Mesh, parameters, the shape and filling of the batches, and the programs that are compiled for them."""
    kind = jax.devices()[0].device_kind
    console.print(f"devices: {devices_in_use()} ({kind})")
    if session.mesh.size > 1:
        sizes = ", ".join(f"{axis} {size}" for axis, size in session.mesh.shape.items())
        console.print(f"mesh: {sizes}")
    console.print(session.attention.said)
    console.print(parameters(session))
    console.print(
        f"a step: {batches.examples_per_step:,.0f} examples, {batches.tokens_per_step:,.0f} tokens in "
        f"{config.batch.rows} rows x {config.batch.tokens} ({batches.padding_share:.1%} padding, at most "
        f"{batches.candidates} candidates a row, {config.batch.micro_batches} micro-batch(es))"
    )
    console.print(f"steps: {batches.steps:,}, {batches.steps_per_epoch:,.1f} an epoch")
    parts = config.batch.micro_batches
    kept = f"compiled once, then kept in {cache}" if cache else "compiled anew: there is no folder to keep them in"
    console.print(
        f"programs: train_step of {parts} x {config.batch.rows // parts} rows x {config.batch.tokens} tokens, "
        f"predict_step of {shape.eval_rows} rows x {shape.tokens} tokens; {kept}"
    )
    if batches.split_impressions and losses.needs_whole_impressions(config.schema.tasks):
        console.print(
            f"note: {batches.split_impressions:,} impressions are longer than a row and are cut; their softmax runs "
            f"over each part (raise batch.tokens to keep them whole)"
        )
    if batches.padding_share > MUCH_PADDING:
        console.print(
            f"note: rows are {batches.padding_share:.0%} padding because few impressions fit in one; a larger "
            f"batch.tokens (and fewer batch.rows) fills them better"
        )
    unread = (
        []
        if session.spec.features
        else [f.name for f in (*config.schema.context, *config.schema.candidate) if not is_text(f)]
    )
    if unread:
        console.print(f"note: the model reads text only; stored but not read: {', '.join(unread)}")


def finished(console: Console, folder: RunFolder, config: TrainConfig) -> None:
    """The test table and the commands that use the run. Raises InputError where the report is damaged."""
    try:
        _show_report(console, folder, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder.report_file}: damaged, expected what srsjax.train wrote ({error!r})") from error
    new = config.data.log.files if isinstance(config.data.log.files, str) else config.data.log.files[0]
    run = shlex.quote(str(folder.path))
    if folder.page_file.exists():
        console.print(f"report: {folder.page_file}")
    if folder.card_file.exists():
        console.print(f"model card: {folder.card_file}")
    console.print("Score with it:", style="bold")
    for line in (
        f"{command('score')} --run {run} --input '{new}' --output scores/",
        f"{command('evaluate')} --run {run} --split test",
    ):
        console.print(f"  {line}")


def _show_report(console: Console, folder: RunFolder, config: TrainConfig) -> None:
    result = folder.read(folder.report_file)
    console.print(
        f"\nbest checkpoint: {folder.checkpoints / str(result['best_step'])} "
        f"(valid {config.evaluate.monitor} {math.nan if result['best_value'] is None else result['best_value']:.4f})"
    )
    for name in ("test", "valid"):
        if result[name]:
            for table in Assessment.read(result, name).tables(f"{name} split"):
                console.print(table)
            break


def command(name: str) -> str:
    """How the shell that started this program starts another command of srsjax.

    A launch script says in SRSJAX_COMMAND how it was called; else this Python is, by its name where the shell finds it.
    """
    if launcher := os.environ.get("SRSJAX_COMMAND"):
        return f"{launcher} {name}"
    found = shutil.which("python")
    python = "python" if found and Path(found).resolve() == Path(sys.executable).resolve() else sys.executable
    return f"{shlex.quote(python)} -m srsjax.{name}"


def parameters(session: Session) -> Table:
    """Parameters by part of the model, all layers together: a line for the trained and the frozen ones of each.

    With more than one device, also what each holds and the mesh axes that divide it.
    """
    several = session.mesh.size > 1
    numbers = ["count", "size", "per device"] if several else ["count", "size"]
    columns = [Column("parameters"), *(Column(name, justify="right") for name in numbers)]
    columns += [Column("divided over")] if several else []
    table = Table(*columns, "trained", box=None)
    parts: dict[tuple[str, bool], list[str]] = {}
    for path in session.shapes:
        parts.setdefault((_part(path), path not in session.frozen), []).append(path)
    layers = session.spec.encoder.num_layers
    for (part, trained), paths in parts.items():
        name = f"{part} (0 to {layers - 1})" if part.endswith("/layers") else part
        table.add_row(name, *_totals(session, paths, several), "yes" if trained else "frozen")
    count = sum(math.prod(shape.shape) for shape in session.trained(session.shapes).values())
    table.add_row("all, float32", *_totals(session, [*session.shapes], several), f"{count:,}", style="bold")
    return table


def _totals(session: Session, paths: list[str], several: bool) -> list[str]:
    """Count and size of parameters; with several devices what one holds, and the axes that divide some of them."""
    shapes, places = [session.shapes[path] for path in paths], [session.shardings[path] for path in paths]
    size = sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in shapes)
    said = [f"{sum(math.prod(shape.shape) for shape in shapes):,}", _size(size)]
    if several:
        held = [
            math.prod(at.shard_shape(shape.shape)) * shape.dtype.itemsize
            for shape, at in zip(shapes, places, strict=True)
        ]
        used = {name for at in places for axis in at.spec for name in ([axis] if isinstance(axis, str) else axis or ())}
        axes = [axis for axis in session.mesh.axis_names if axis in used and session.mesh.shape[axis] > 1]
        said += [_size(sum(held)), ", ".join(axes) or "-"]
    return said


def _part(path: str) -> str:
    """The part of the model that a parameter belongs to: `bert/layers`, `bert/embeddings`, `head`."""
    first, _, rest = path.partition("/")
    return f"{first}/{rest.partition('/')[0]}" if first in ("bert", "features") else first


def _size(count: int) -> str:
    """Bytes for people: `1.5 MiB`."""
    unit = min(int(math.log2(max(count, 1))) // 10, 3)
    return f"{count / 2 ** (10 * unit):.1f} {('B', 'KiB', 'MiB', 'GiB')[unit]}" if unit else f"{count} B"
