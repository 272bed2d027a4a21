"""What benchmarks that train share: commands as a user runs them, and lines of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def command(name: str, *arguments: object) -> None:
    """A srsjax command, as a user runs it."""
    subprocess.run([sys.executable, "-m", f"srsjax.{name}", *map(str, arguments)], check=True)


def read_lines(path: Path) -> list[dict]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
