"""How far scoring is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from srsjax.console import Console
from srsjax.data.batches.batch import PackedBatch

EVERY_SECONDS = 60
"""Between two lines where there is no terminal."""


class ScoreProgress:
    """Counts what this process scored and says so; a context manager. On processes other than the first it counts."""

    def __init__(self, console: Console, total: int | None, tokens: bool, every: float = EVERY_SECONDS):
        """`total`: log rows to be read, None where unknown. `tokens`: whether tokens mean anything to the model."""
        self.console, self.total, self.every = console, total, every
        self.rows, self.pairs, self.skipped = 0, 0, 0
        self.tokens: int | None = 0 if tokens else None
        self.started = self.said = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.completed:,.0f} rows"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._bar.add_task("score", total=total, said="compiling")

    def __enter__(self) -> ScoreProgress:
        self._bar.start()
        self.started = self.said = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def read(self, rows: int, skipped: bool) -> None:
        """So many log rows come next, or are skipped, because they are scored already or by another process."""
        self.rows += rows
        self.skipped += rows if skipped else 0

    def assembled(self, batch: PackedBatch) -> None:
        """A batch is about to be dispatched."""
        if self.tokens is not None:
            self.tokens += int(np.count_nonzero(batch.segment > 0))

    def scored(self, pairs: int) -> None:
        """So many pairs are done; says so where it is time."""
        self.pairs += pairs
        now = time.monotonic()
        self._bar.update(self._task, completed=self.rows, said=self.rates())
        if now - self.said >= self.every and not self.console.is_terminal:
            self.said = now
            of = f" of {self.total:,}" if self.total is not None else ""
            self.console.print(f"{self.rows:,}{of} rows  {self.rates()}{self._left()}")

    def rates(self) -> str:
        """`1,234 pairs/s  56,789 tokens/s`; tokens are real ones, without padding."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        tokens = f"  {self.tokens / seconds:,.0f} tokens/s" if self.tokens is not None else ""
        return f"{self.pairs / seconds:,.0f} pairs/s{tokens}"

    def _left(self) -> str:
        """The time that the rest takes at the rate so far; nothing where that is unknown."""
        done = self.rows - self.skipped
        if self.total is None or not done:
            return ""
        seconds = (self.total - self.rows) / done * (time.monotonic() - self.started)
        return f"  {timedelta(seconds=round(seconds))} left"
