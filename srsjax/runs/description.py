"""Which weights a run has, whatever its folder is called."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from srsjax.data.store.manifest import describe_ends
from srsjax.errors import InputError
from srsjax.runs.run_folder import RESTORE, RunFolder


def describe_run(folder: RunFolder) -> dict[str, Any]:
    """Which weights and which encoder of rows a run has, whatever the folder is called: the size and the ends of every
    file that the scorer reads. Raises InputError where one is missing."""
    step = folder.best_step()
    weights = folder.checkpoints / str(step)
    read = [folder.config_file, folder.model_file, folder.manifest_file, *_files(folder.tokenizer), *_files(weights)]
    read += [file for file in (folder.compressed, folder.calibration_file) if file.exists()]
    digest = hashlib.sha256()
    for file in read:
        if not file.exists():
            raise InputError(f"{file}: no such file; {RESTORE}")
        digest.update(json.dumps([str(file.relative_to(folder.path)), describe_ends(file)]).encode())
    return {"checkpoint": step, "fingerprint": digest.hexdigest()[:12]}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())
