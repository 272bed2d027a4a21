"""What is kept of the training rows: the accumulated values of one feature, and the fitted statistics of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.data.preparing.order import kth_smallest
from srsjax.data.store.arrays import ArrayWriter
from srsjax.errors import InputError

Statistic = Literal["counts", "moments", "log_moments", "median", "quantiles"]
"""`counts` of distinct values; `moments` of numbers or of `log_of` them; `median` and `quantiles`, which need them on
disk."""
SAMPLE = 1_000_000
"""Most numbers of which quantiles are taken."""
FITTED_POLICIES = ("mean", "median", "most_frequent")
"""The `missing` policies that fill with a statistic."""


@dataclass(frozen=True)
class Fitted:
    """Fitted statistics by feature, as the manifest keeps them."""

    fills: dict[str, str | float] = field(default_factory=dict)
    """What `mean`, `median` and `most_frequent` put in."""
    vocabularies: dict[str, list[str]] = field(default_factory=dict)
    """Categories in the order of their ids, from id 1."""
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Mean and standard deviation of the numbers that are there."""
    edges: dict[str, list[float]] = field(default_factory=dict)
    """Numbers between which the buckets of a quantile scale lie."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """By task, the classes of a label in the order of its outputs."""
    labels: dict[str, dict[str, float]] = field(default_factory=dict)
    """By task, mean and standard deviation of labels that are numbers."""

    def __post_init__(self) -> None:
        for name, texts in [*self.vocabularies.items(), *self.classes.items()]:
            if odd := [each for each in texts if not isinstance(each, str)]:
                raise TypeError(f"{name}: found {type(odd[0]).__name__} among its categories, expected texts alone")

    def to_json(self) -> dict:
        """As plain data."""
        return asdict(self)


class Seen:
    """The values of one feature in the training rows."""

    def __init__(self, name: str, statistics: frozenset[Statistic], folder: Path):
        """`folder` holds the numbers of a median."""
        self.name, self._moments_wanted = name, not statistics.isdisjoint({"moments", "log_moments"})
        self._logarithm = "log_moments" in statistics
        self._counts_wanted = "counts" in statistics
        self.counts: Counter = Counter()
        self.path = folder / f"{name}.npy"
        on_disk = not statistics.isdisjoint({"median", "quantiles"})
        self.numbers = ArrayWriter(self.path, np.float64) if on_disk else None
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: pa.Array) -> None:
        """Adds log values [n]."""
        values = values.drop_null()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = pc.list_flatten(values)
        if self._counts_wanted:
            for pair in pc.value_counts(values).to_pylist():
                self.counts[pair["values"]] += pair["counts"]
        if self._moments_wanted:
            numbers = values.to_numpy()
            self._add_moments(numbers, np.ones(len(numbers)))
        if self.numbers:
            self.numbers.append(values.to_numpy())

    def add_counted(self, values: pa.Array, times: np.ndarray) -> None:
        """Adds a catalogue's values [V], each as often as `times` [V] int64 says."""
        there = (times > 0) & np.asarray(values.is_valid())
        values, times = values.filter(pa.array(there)), times[there]
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            times = np.repeat(times, pc.list_value_length(values).to_numpy())
            values = pc.list_flatten(values)
        if self._counts_wanted:
            for value, count in zip(values.to_pylist(), times.tolist(), strict=True):
                self.counts[value] += count
        if self._moments_wanted:
            self._add_moments(values.to_numpy(), times)
        if self.numbers:
            for start in range(0, len(times), 4096):
                part = slice(start, start + 4096)
                self.numbers.append(np.repeat(values.to_numpy()[part], times[part]))

    def _add_moments(self, numbers: np.ndarray, times: np.ndarray) -> None:
        """Merges means and sums of squared differences (Chan, Golub & LeVeque 1979)."""
        numbers, added = log_of(numbers) if self._logarithm else numbers, int(times.sum())
        if not added:
            return
        mean = float(numbers @ times) / added
        difference = mean - self.mean
        total = self.count + added
        self.squares += float((numbers - mean) ** 2 @ times) + difference**2 * self.count * added / total
        self.mean += difference * added / total
        self.count = total

    def moments(self) -> dict[str, float]:
        """Mean, standard deviation and count; zeros without any value."""
        deviation = (self.squares / self.count) ** 0.5 if self.count else 0.0
        return {"mean": self.mean, "std": deviation, "count": self.count}

    def quantiles(self, parts: int) -> list[float]:
        """The numbers that divide the values in so many parts of equal size, distinct ones in order; of `SAMPLE` values
        at regular intervals where there are more."""
        numbers = self._numbers()
        if not len(numbers):
            return []
        sample = np.asarray(numbers[:: -(-len(numbers) // SAMPLE)])
        return np.unique(np.quantile(sample, np.arange(1, parts) / parts)).tolist()

    def _numbers(self) -> np.ndarray:
        """All numbers, on disk; none can be added from now on."""
        if self.numbers is not None:
            self.numbers.close()
            self.numbers = None
        return np.load(self.path, mmap_mode="r")

    def vocabulary(self, min_count: int) -> list[str]:
        """Commonest first, then by name, so that the same rows give the same ids."""
        often = [value for value, count in self.counts.items() if count >= min_count]
        return sorted(often, key=lambda value: (-self.counts[value], value))

    def fill(self, policy: str) -> str | float:
        """The value that a policy puts in. Raises InputError where there is no value at all."""
        if not (self.count or self.counts):
            raise InputError(
                f"feature {self.name!r}: no training row has a value, so there is no "
                f'{policy} to fill with; set missing="constant"'
            )
        match policy:
            case "mean":
                return self.mean
            case "median":
                return _median(self._numbers())
            case _:
                return min(self.counts, key=lambda value: (-self.counts[value], value))


def log_of(numbers: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), of the type of `numbers`."""
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def _median(numbers: np.ndarray) -> float:
    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), 1 << 20):
            yield numbers[start : start + (1 << 20)]

    middle = (len(numbers) - 1) // 2, len(numbers) // 2
    return sum(kth_smallest(blocks, k) for k in middle) / 2
