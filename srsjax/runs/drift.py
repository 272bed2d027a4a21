"""Which of the things that are watched are no longer as in the reference of a run.

Something has drifted where it is further from the reference than chance makes it, of all that is tested (Holm's
correction, so that `Limits.alpha` is the probability of any false alarm), and so far that it matters: by PSI or by the
distance of Kolmogorov and Smirnov, of shares, means and metrics by how much they changed. Of very many rows chance
alone says too little: then every small difference is sure. Of few rows distance alone says too little: then every one
is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich.table import Table

from srsjax.metrics import drift
from srsjax.metrics.drift import Sample
from srsjax.runs.observation import Mean, Mix, Named, Numbers, Series, Share
from srsjax.runs.reference import Reference, counted, distribution, of_summary

Name = Callable[[Named, str, int], str]
"""What a person calls an id of a mix: what it is, its feature, and the id."""


@dataclass(frozen=True)
class Limits:
    """When something has drifted."""

    alpha: float = 0.001
    psi: float = 0.1
    ks: float = 0.1
    share: float = 0.01
    mean: float = 0.1
    metric: float = 0.03


@dataclass(frozen=True)
class Finding:
    """One thing that is watched."""

    name: str
    kind: str
    """`number`, `mix`, `share`, `truth` or `metric`."""
    rows: int
    """New rows of it; 0 of truths."""
    tests: Mapping[str, tuple[float, float, bool]]
    """By test: how far it is from the reference, the probability of that by chance, and whether it is so far that it
    matters."""
    said: str
    """What changed, in words."""
    chance: float = 0.0
    """The PSI that rows like those of the reference would have."""
    adjusted: Mapping[str, float] = field(default_factory=dict)
    """The probabilities, corrected for all tests of all findings."""
    drifted: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        found = {
            name: {"value": value, "p": p, "adjusted": self.adjusted[name]}
            for name, (value, p, _) in self.tests.items()
        }
        return (
            {"kind": self.kind, "rows": self.rows, "drift": self.drifted, **found}
            | ({"psi_by_chance": self.chance} if "psi" in self.tests else {})
            | {"change": self.said}
        )


def find(
    reference: Reference,
    series: Sequence[Series],
    lacking: Mapping[str, float],
    rows: tuple[int, int],
    limits: Limits,
    name: Name,
    ignore: Sequence[str] = (),
) -> list[Finding]:
    """What became of each series that the reference has too, those that drifted first.

    Args:
      series: from `srsjax.runs.reference.observe`, of the new rows.
      lacking: from `srsjax.runs.reference.lacking`, of the new rows.
      rows: how many new rows there are, and of how many impressions.
      ignore: names that are left out.
    """
    found = [
        _one(each, reference.series[each.name], limits, name)
        for each in series
        if each.name in reference.series and each.name not in ignore
    ]
    for label, share in lacking.items():
        if label in reference.lacking and label not in ignore:
            found.append(_lacking(label, (reference.lacking[label], reference.rows), (share, *rows), limits))
    made = adjusted(found, limits)
    return sorted(made, key=lambda each: not each.drifted)


def adjusted(found: Sequence[Finding], limits: Limits) -> list[Finding]:
    """The findings with their probabilities corrected for all tests, and whether they have drifted."""
    places = [(number, test) for number, each in enumerate(found) for test in each.tests]
    values = drift.holm([found[number].tests[test][1] for number, test in places])
    by: list[dict[str, float]] = [{} for _ in found]
    for (number, test), p in zip(places, values, strict=True):
        by[number][test] = p
    return [
        replace(
            each,
            adjusted=own,
            drifted=any(own[test] < limits.alpha and far for test, (_, _, far) in each.tests.items()),
        )
        for each, own in zip(found, by, strict=True)
    ]


def table(found: Sequence[Finding], title: str) -> Table:
    """One line for each finding, but for shares that were 0 and are."""
    shown = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("", "watched", "distance", "p, corrected", "change"):
        shown.add_column(heading)
    for each in found:
        if each.kind == "share" and not each.drifted and each.said == _of_shares(0, 0):
            continue
        distances = ", ".join(f"{test} {value:.3f}" for test, (value, _, _) in each.tests.items())
        chance = min(each.adjusted.values(), default=1.0)
        shown.add_row("DRIFT" if each.drifted else "-", each.name, distances, f"{chance:.2g}", each.said)
    return shown


def _one(series: Series, of: Mapping[str, Any], limits: Limits, name: Name) -> Finding:
    match series:
        case Mean():
            return _mean(series, of, limits)
        case Numbers():
            return _numbers(series, of, limits)
        case Mix():
            return _mix(series, of, limits, name)
        case Share():
            old, new = of_summary(of), counted(series, of)
            return _share(series.name, old, new, limits)


def _mean(series: Mean, of: Mapping[str, Any], limits: Limits) -> Finding:
    change, scale = series.value - of["value"], max(abs(of["scale"]), 1e-12)
    p = drift.normal_tail(change / max(math.hypot(series.error, of["error"]), 1e-300))
    worse = {"max": change < 0, "min": change > 0, "": True}[series.better]
    limit = limits.metric if series.better else limits.mean
    said = f"{of['value']:.4f} -> {series.value:.4f}"
    far = worse and abs(change) / scale >= limit
    return Finding(series.name, "metric" if series.better else "truth", 0, {"change": (change, p, far)}, said)


def _numbers(series: Numbers, of: Mapping[str, Any], limits: Limits) -> Finding:
    old, new = of_summary(of), counted(series, of)
    apart = drift.compare(old, new)
    places = distribution(series, of["places"])
    distance = drift.ks((np.asarray(of["upto"]), np.asarray(of["below"])), places)
    tests = {
        "psi": (apart.psi, apart.p, apart.psi - apart.chance >= limits.psi),
        "ks": (distance, drift.ks_tail(distance, old, new), distance >= limits.ks),
    }
    there = series.values[~np.isnan(series.values)]
    said = f"mean {_number(of['mean'])} -> {_number(float(there.mean()) if len(there) else None)}"
    missing = [each.shares[-1] for each in (old, new)]
    if max(missing) > 0:
        said += f", missing {_of_shares(*missing)}"
    return Finding(series.name, "number", len(series.values), tests, said, apart.chance)


def _mix(series: Mix, of: Mapping[str, Any], limits: Limits, name: Name) -> Finding:
    old, new = of_summary(of), counted(series, of)
    apart = drift.compare(old, new)
    change = new.shares - old.shares
    top = len(of["top"])
    said = []
    for cell in np.argsort(-np.abs(change[:top]), kind="stable")[:3].tolist():
        if change[cell]:
            label = name(series.named, series.feature, int(of["top"][cell]))
            said.append(f"{label} {_of_shares(old.shares[cell], new.shares[cell])}")
    others = [float(each.shares[top:].sum()) for each in (old, new)]
    if max(others) > 0:
        said.append(f"all others {_of_shares(*others)}")
    tests = {"psi": (apart.psi, apart.p, apart.psi - apart.chance >= limits.psi)}
    return Finding(series.name, "mix", len(series.ids), tests, ", ".join(said) or "nothing", apart.chance)


def _share(name: str, old: Sample, new: Sample, limits: Limits) -> Finding:
    before, after = (float(each.shares[1]) for each in (old, new))
    p = drift.compare(old, new).p
    tests = {"change": (after - before, p, abs(after - before) >= limits.share)}
    return Finding(name, "share", int(new.rows), tests, _of_shares(before, after))


def _lacking(name: str, old: tuple[float, int], new: tuple[float, int, int], limits: Limits) -> Finding:
    """Shares of rows without their users: each impression is taken for a cluster of equal rows, the most it can be."""
    effect = max(new[1] / max(new[2], 1), 1.0)
    samples = [
        Sample(np.array([1 - share, share]) * count, (effect - 1, effect**2 - 1, effect**3 - 1))
        for share, count in (old, new[:2])
    ]
    return _share(name, samples[0], samples[1], limits)


def _of_shares(before: float, after: float) -> str:
    return f"{before:.2%} -> {after:.2%}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
