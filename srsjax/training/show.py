"""What a run prints for a person at its start and at its end."""

from __future__ import annotations

import math
import re
from pathlib import Path

import jax
from jax.sharding import PartitionSpec
from rich.console import Console
from rich.table import Column, Table

from srsjax.config import History, Text, TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.distributed import devices_in_use
from srsjax.metrics import report
from srsjax.objectives import losses
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Session

MUCH_PADDING = 0.05
"""Share of padding that is worth a word."""


def start(
    console: Console, config: TrainConfig, session: Session, batches, shape: BatchShape, cache: Path | None
) -> None:
    """Mesh, parameters, the shape and filling of the batches, and the programs that are compiled for them."""
    sizes = ", ".join(f"{axis} {size}" for axis, size in session.mesh.shape.items())
    kind = jax.devices()[0].device_kind
    console.print(f"devices: {devices_in_use()} ({kind})", highlight=False)
    console.print(f"mesh: {sizes}", highlight=False)
    console.print(session.attention.said, highlight=False)
    console.print(parameters(session))
    console.print(
        f"batches: {batches.steps:,} steps of {config.batch.rows} rows x {config.batch.tokens} tokens "
        f"({batches.candidates} candidate slots a row, {config.batch.micro_batches} micro-batch(es)), "
        f"{batches.padding_share:.1%} padding",
        highlight=False,
    )
    parts = config.batch.micro_batches
    kept = f"compiled once, then kept in {cache}" if cache else "compiled anew: there is no folder to keep them in"
    console.print(
        f"programs: train_step of {parts} x {config.batch.rows // parts} rows x {config.batch.tokens} tokens, "
        f"predict_step of {shape.eval_rows} rows x {shape.tokens} tokens; {kept}",
        highlight=False,
        soft_wrap=True,
    )
    if batches.split_impressions and losses.needs_whole_impressions(config.schema.tasks):
        console.print(
            f"note: {batches.split_impressions:,} impressions are longer than a row and are cut; their softmax runs "
            f"over each part (raise batch.tokens to keep them whole)",
            highlight=False,
        )
    if batches.padding_share > MUCH_PADDING:
        console.print(
            f"note: rows are {batches.padding_share:.0%} padding because few impressions fit in one; a larger "
            f"batch.tokens (and fewer batch.rows) fills them better",
            highlight=False,
        )
    unread = [f.name for f in (*config.schema.context, *config.schema.candidate) if not _is_text(f)]
    if unread:
        console.print(f"note: the model reads text only; stored but not read: {', '.join(unread)}", highlight=False)


def finished(console: Console, folder: RunFolder, config: TrainConfig) -> None:
    """The test table and the commands that use the run."""
    result = folder.read(folder.report_file)
    console.print(
        f"\nbest checkpoint: {folder.checkpoints / str(result['best_step'])} "
        f"(valid {config.evaluate.monitor} {math.nan if result['best_value'] is None else result['best_value']:.4f})",
        highlight=False,
    )
    for name in ("test", "valid"):
        if result[name]:
            console.print(report.table({"model": result[name], **result[f"{name}_references"]}, title=f"{name} split"))
            break
    new = config.data.log.files if isinstance(config.data.log.files, str) else config.data.log.files[0]
    console.print("Score with it:", style="bold")
    for line in (
        f"python -m srsjax.score --run {folder.path} --input '{new}' --output scores/",
        f"python -m srsjax.evaluate --run {folder.path} --split test",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)


def parameters(session: Session) -> Table:
    """One line a kind of parameter: layers are told together."""
    right = {"justify": "right"}
    table = Table(
        Column("parameter", no_wrap=True),
        "shape",
        "sharding",
        Column("count", **right),
        Column("a device", **right),
        box=None,
    )
    kinds: dict[tuple, list[str]] = {}
    bytes_a_device = {
        path: math.prod(session.shardings[path].shard_shape(shape.shape)) * shape.dtype.itemsize
        for path, shape in session.shapes.items()
    }
    for path, shape in session.shapes.items():
        kind = re.sub(r"layers/\d+/", "layers/*/", path)
        kinds.setdefault((kind, shape.shape, _spec(session.shardings[path].spec)), []).append(path)
    for (kind, shape, spec), paths in kinds.items():
        name = kind.replace("layers/*/", f"layers/0-{len(paths) - 1}/") if len(paths) > 1 else kind
        held = sum(bytes_a_device[path] for path in paths)
        table.add_row(name, " x ".join(map(str, shape)), spec, f"{len(paths) * math.prod(shape):,}", _size(held))
    total = sum(math.prod(shape.shape) for shape in session.shapes.values())
    held = sum(bytes_a_device.values())
    table.add_row("all, float32, trainable", "", "", f"{total:,}", _size(held), style="bold")
    return table


def _spec(spec: PartitionSpec) -> str:
    """What divides each dimension: `–, fsdp+tensor`, where a dash leaves one whole; `whole` where nothing does."""
    axes = [(axis,) if isinstance(axis, str) else tuple(axis or ()) for axis in spec]
    return ", ".join("+".join(names) or "–" for names in axes) if any(axes) else "whole"


def _size(count: int) -> str:
    """Bytes for people: `1.5 MiB`."""
    unit = min(int(math.log2(max(count, 1))) // 10, 3)
    return f"{count / 2 ** (10 * unit):.1f} {('B', 'KiB', 'MiB', 'GiB')[unit]}" if unit else f"{count} B"


def _is_text(feature) -> bool:
    return isinstance(feature, Text | History)
