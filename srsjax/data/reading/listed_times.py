"""Times that a list holds, as categories: how long before the request each was, its hour of the day, its weekday."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.config import Times

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LATER = "later"
"""What is after the time that recency counts up to."""


def categories(lists: pa.Array, times: Times, until: pa.Array | None) -> pa.Array:
    """Categories of times, null where a time is missing.

    Args:
      lists: [n] large_list<float64>, seconds since 1970, UTC.
      times: `recency` makes `0 s` of less than a second, and `2^k s` of at least that and less than twice as much;
        `hour` makes `00 h` to `23 h`, `weekday` `Monday` to `Sunday`.
      until: [n] float64 in seconds, for `recency`; null where it is missing, and nothing is known then.

    Returns:
      [n] large_list<large_string>.
    """
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.float64)
    if times == "recency":
        assert until is not None
        found = _recency(np.repeat(until.to_numpy(zero_copy_only=False).astype(np.float64), lengths) - values)
    elif times == "hour":
        found = _named(values // 3600 % 24, [f"{hour:02d} h" for hour in range(24)])
    else:
        found = _named((values // 86400 + 3) % 7, list(DAYS))  # 1970 began on a Thursday
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, found, mask=lists.is_null())


def _recency(seconds: np.ndarray) -> pa.Array:
    most = 64
    names = [LATER, "0 s", *(f"2^{power} s" for power in range(most))]
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.clip(np.frexp(seconds)[1] - 1, 0, most - 1)  # exact, unlike a logarithm
        place = np.where(seconds < 0, 0, np.where(seconds < 1, 1, 2 + power))
    return _named(np.where(np.isnan(seconds), np.nan, place), names)


def _named(place: np.ndarray, names: list[str]) -> pa.Array:
    """The names at these places, null at NaN."""
    missing = np.isnan(place)
    rows = pa.array(np.where(missing, 0, place).astype(np.int64), mask=missing)
    return pa.array(names, pa.large_string()).take(rows)
