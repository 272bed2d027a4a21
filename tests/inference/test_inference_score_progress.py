"""What scoring says of how far it is."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import numpy as np

from srsjax.console import Console
from srsjax.inference.score_progress import ScoreProgress

BATCH = SimpleNamespace(segment=np.array([[1, 1, 2, 0], [1, 0, 0, 0]]))
"""Four real tokens."""


def said(monkeypatch, total, tokens=True, every=0.0) -> str:
    """What is printed after half of 400 rows, of which 100 were skipped, 10 seconds from the start."""
    out, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ScoreProgress(Console(file=out), total, tokens, every) as progress:
        progress.read(100, skipped=True)
        progress.read(100, skipped=False)
        progress.assembled(BATCH)
        clock[0] = 10.0
        progress.scored(90)
    return out.getvalue()


def test_a_line_has_rows_rates_and_the_time_left(monkeypatch):
    # 100 rows were read in 10 s, 200 are left: 20 s. Rows that were skipped took no time.
    assert said(monkeypatch, 400) == "200 of 400 rows  9 pairs/s  0 tokens/s  0:00:20 left\n"


def test_without_a_known_number_of_rows_there_is_no_time_left(monkeypatch):
    assert said(monkeypatch, None, tokens=False) == "200 rows  9 pairs/s\n"


def test_lines_come_at_intervals(monkeypatch):
    assert said(monkeypatch, 400, every=60.0) == ""
