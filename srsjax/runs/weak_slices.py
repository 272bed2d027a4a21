"""Groups of a report's slices that are surely worse than the whole split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srsjax.metrics.table import row_of
from srsjax.runs.assessment import Assessment
from srsjax.runs.slices import PLAIN, with_ends


@dataclass(frozen=True)
class MeasuredGroup:
    """A group of a slice, and a metric of it."""

    slice: str
    name: str
    rows: int
    key: str
    """Of the metric; empty where none is defined in the group."""
    value: Sequence[float | None]
    """The metric and the ends of its interval."""
    off: Sequence[float | None]
    """Mean prediction less mean label, and the ends of its interval; empty where it is unknown."""
    whole: str
    """The metric of the whole split."""

    @property
    def said(self) -> str:
        """The metric in words."""
        return with_ends(self.value or None)

    @property
    def calibration(self) -> str:
        """Mean prediction less mean label in words."""
        return with_ends(self.off or None)


def measured_groups(of: Assessment) -> list[MeasuredGroup]:
    """All groups of all slices that have enough rows for metrics, each with the metric that its slice is about."""
    found = []
    for name, made in of.slices.items():
        for group in made["groups"]:
            keys = [key for key in group if key not in PLAIN and key in of.model]
            if not keys and "calibration" not in group:
                continue
            key = keys[0] if keys else ""
            whole = f"{of.model[key]:.4f}" if key else "-"
            value, off = group.get(key, ()), group.get("calibration", ())
            found.append(MeasuredGroup(name, group["name"], group["rows"], key, value, off, whole))
    return found


def weak_groups(of: Assessment, groups: Sequence[MeasuredGroup]) -> list[MeasuredGroup]:
    """Those whose interval is all on the worse side of the whole split's metric, or, of the difference between mean
    prediction and mean label, all on one side of 0."""
    return [group for group in groups if _is_worse(of, group) or _is_off(group)]


def _is_worse(of: Assessment, group: MeasuredGroup) -> bool:
    better, ends = row_of(group.key).better if group.key else None, _ends(group.value)
    if not better or not ends:
        return False
    return ends[1] < of.model[group.key] if better == "max" else ends[0] > of.model[group.key]


def _is_off(group: MeasuredGroup) -> bool:
    ends = _ends(group.off)
    return bool(ends) and (ends[0] > 0 or ends[1] < 0)


def _ends(value: Sequence[float | None]) -> list[float]:
    """The ends of an interval, none where it is unknown."""
    known = [end for end in value[1:] if end is not None]
    return known if len(known) == 2 else []
