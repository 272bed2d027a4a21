"""What benchmarks that train share: commands as a user runs them, and lines of results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path


def command(name: str, *arguments: object) -> None:
    """A srsjax command, as a user runs it."""
    subprocess.run([sys.executable, "-m", f"srsjax.{name}", *map(str, arguments)], check=True)


def read_lines(path: Path) -> list[dict]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_missing(log: Path, wanted: Iterable[Mapping], run: Callable[..., dict]) -> list[dict]:
    """The records of a file of results, after `run(**keys)` was added to it for each of `wanted` that it lacks.

    A record holds its keys; what another command left in the file stays and is returned too.
    """
    records = read_lines(log) if log.exists() else []
    for keys in wanted:
        if not any(keys.items() <= record.items() for record in records):
            records.append({**keys, **run(**keys)})
            with log.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    return records
