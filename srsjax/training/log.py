"""What a run says: a progress bar and tables for people, JSON lines and trackers for programs."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from srsjax.console import Console
from srsjax.distributed import is_first
from srsjax.files import write_text
from srsjax.runs.run_folder import RunFolder
from srsjax.training.tracking import Tracking


class RunLog:
    """Writes scalars of a run; a context manager. Lines after `step` (of a run that was cut off) are dropped first.

    Of several processes the first writes; on the others all of it does nothing.
    """

    def __init__(self, folder: RunFolder, step: int, total: int, console: Console, tracking: Tracking | None = None):
        self.console, self._tracking = console, tracking
        self._writes = is_first()
        if self._writes:
            drop_lines_after(folder.metrics_file, step)
            drop_lines_after(folder.skipped_file, step)
        file = folder.metrics_file if self._writes else os.devnull
        self._file = open(file, "a", buffering=1)  # noqa: SIM115 (closed in __exit__)
        if tracking:
            tracking.start(step)
        self._bar = Progress(
            TextColumn("[bold]step {task.completed:>{task.fields[width]}}/{task.total}"),
            BarColumn(bar_width=8),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or not self._writes,
        )
        self._task = self._bar.add_task("train", total=total, completed=step, said="compiling", width=len(str(total)))

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()
        self._file.close()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        """One line `{"kind", "step", **values}`, and `kind/name` for the trackers."""
        if not self._writes:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **_plain(values)}) + "\n")
        if self._tracking:
            self._tracking.log(step, {f"{kind}/{name}": value for name, value in values.items()})

    def said(self, step: int, total: int, values: dict[str, float]) -> None:
        """The bar's text, short enough for 80 columns; where there is no terminal, a plain line that says more."""
        loss, rate = f"loss {values['loss']:.4f}", f"lr {values['learning_rate']:.1e}"
        examples, tokens = values["examples_per_second"], values["tokens_per_second"]
        mfu = f"MFU {values['mfu']:.0%}" if "mfu" in values else ""
        shown = f"{tokens / 1000:,.1f}k tok/s {mfu or f'{examples:,.0f} ex/s'}"
        self._bar.update(self._task, completed=step, said=f"{loss} {rate} {shown}")
        if not self.console.is_terminal:
            self.console.print(
                f"step {step:>{len(str(total))}}/{total}  {loss}  {rate}  {examples:,.0f} examples/s  "
                f"{tokens:,.0f} tokens/s  input wait {values['input_wait']:.0%}{mfu and '  ' + mfu}"
            )


def read_lines(path: Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, none where there is no file; a cut off or damaged one is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict) and isinstance(read.get("step"), int) and "kind" in read:
            found.append(read)
    return found


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the JSON lines of steps up to `step`, so that a resumed run's file is that of an uninterrupted one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            whole = False  # cut off while it was written, or damaged
        if whole:
            kept.append(line)
    write_text(path, "".join(kept))


def _plain(values: dict) -> dict:
    """NaN and infinity are not JSON: they become strings, so that a reader of the file sees them and does not fail."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
