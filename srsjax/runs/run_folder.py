"""The run folder: the one thing that evaluate, score and export need.

config.json      the resolved config            metrics.jsonl    one JSON line a log step and an evaluation
model.json       what the model is              tensorboard/     the same as scalars
manifest.json    the prepared store's manifest  checkpoints/     Orbax, the latest few and the best
tokenizer/       a Hugging Face tokenizer       valid.png test.png  ROC and calibration curves
skipped.jsonl    steps that were skipped, and their rows (`srsjax.training.anomalies`)
goodput.jsonl    where the wall time went    tensorboard/plugins/profile  traces of `profile.steps`
calibration.json  how logits of the best checkpoint become calibrated (`srsjax.runs.calibration`)
report.html      what a person reads: metrics, figures, slices, errors (`srsjax.reporting.page`)
report.json      final metrics; written last: with it the run is finished

A run that srsjax.compress made has compressed.safetensors and compression.json instead of checkpoints and metrics.

config.json also has, under `precision`, what `model.dtype auto` was and on what kind of device.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srsjax.config import TrainConfig
from srsjax.config_io import from_json, to_json
from srsjax.errors import InputError
from srsjax.files import remove_folder, write_json

# Fields that do not change what is computed, so a run may resume with another value of them.
FREE = (
    "overwrite",
    "run_dir",
    "log_every",
    "checkpoints",
    "mesh",
    "data.store",
    "batch.workers",
    "batch.micro_batches",
    "batch.eval_rows",
    "evaluate.slices",
    "model.remat",
    "profile",
)

PRECISION = "precision"
"""Key of `config.json` beside the fields of the config."""


class RunFolder:
    """Paths and small JSON files of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.model_file = self.path / "model.json"
        self.manifest_file = self.path / "manifest.json"
        self.report_file = self.path / "report.json"
        self.page_file = self.path / "report.html"
        self.calibration_file = self.path / "calibration.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.skipped_file = self.path / "skipped.jsonl"
        self.goodput_file = self.path / "goodput.jsonl"
        self.tokenizer = self.path / "tokenizer"
        self.compressed = self.path / "compressed.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.report_file.exists()

    def check(self, config: TrainConfig) -> None:
        """Raises InputError where the folder holds another run, or files that are no run.

        `config.overwrite` allows another run to be replaced, and nothing that is not a run.
        """
        if self.config_file.exists():
            changed = differences(_asked(self.config()), _asked(config))
            if changed and not config.overwrite:
                raise InputError(
                    f"{self.path}: holds a run of another config ({'; '.join(changed[:3])}); "
                    f"{self._warm_start(changed)}choose another --run_dir, or --overwrite True to delete it"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path}: holds files but no config.json, so it is no run; choose another --run_dir")

    def _warm_start(self, changed: list[str]) -> str:
        """How to train longer, or on newer data, where the run is finished and its weights fit what changed."""
        if not self.finished or any(field.startswith(("schema.", "model.", "tokenizer.")) for field in changed):
            return ""
        return f"train on from its weights with --model.pretrained {shlex.quote(str(self.path))} --run_dir NEW, "

    def create(
        self, config: TrainConfig, tokenizer: Path, manifest: dict, model: dict, precision: dict | None = None
    ) -> None:
        """Writes what a run folder holds from its start; deletes an earlier run first where `config.overwrite`.

        `precision` is what `precision()` then returns.

        Raises InputError where a run to resume began with other data.
        """
        if config.overwrite and self.config_file.exists():
            remove_folder(self.path)
        if self.manifest_file.exists():
            self.check_data(manifest)
        self.path.mkdir(parents=True, exist_ok=True)
        data = to_json(config) | ({PRECISION: precision} if precision else {})
        write_json(self.config_file, data)  # first: with it the folder is known as a run
        shutil.copytree(tokenizer, self.tokenizer, dirs_exist_ok=True)
        write_json(self.manifest_file, manifest)
        write_json(self.model_file, model)

    def check_data(self, manifest: dict) -> None:
        """Raises InputError where a store's manifest is not that of the data this run was trained on."""
        if self.read(self.manifest_file)["fingerprint"] != manifest["fingerprint"]:
            raise InputError(
                f"{self.path}: its data changed since the run began; restore them, or choose another --run_dir, "
                f"or --overwrite True to train anew"
            )

    def config(self) -> TrainConfig:
        """The resolved config. Raises InputError where the folder is not a run."""
        data = self.read(self.config_file)
        if isinstance(data, dict):
            data.pop(PRECISION, None)
        return from_json(data, str(self.config_file))

    def precision(self) -> dict | None:
        """What `model.dtype auto` was for the run, of `srsjax.runs.precision`; None where that is not written."""
        return self.read(self.config_file).get(PRECISION) if self.config_file.exists() else None

    def read(self, file: Path) -> dict:
        """One of the folder's JSON files. Raises InputError where it is missing or broken."""
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path}: no {file.name}, expected a run folder written by srsjax.train") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not JSON ({error})") from None

    def best_step(self) -> int:
        """The step whose checkpoint the report is about. Raises InputError where the run is not finished."""
        if not self.finished:
            raise InputError(f"{self.path}: not finished (no report.json); run the same train command again to go on")
        return int(self.read(self.report_file)["best_step"])


def _asked(config: TrainConfig) -> dict:
    """A config as JSON, without the rows that were chosen for `batch.examples`."""
    data = to_json(config)
    if config.batch.examples:
        data["batch"] |= {"rows": 0}
    return data


def differences(old: dict, new: dict) -> list[str]:
    """Fields that differ and change the result, each as `batch.rows 32 there, 64 here`."""
    return [f"{name} {there!r} there, {here!r} here" for name, there, here in changed_fields(old, new)]


def changed_fields(old: dict, new: dict, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields of two configs as JSON that differ and change the result: dotted name, and both values."""
    for key in dict.fromkeys([*old, *new]):
        name = prefix + key
        if name in FREE or old.get(key) == new.get(key):
            continue
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from changed_fields(old[key], new[key], name + ".")
        else:
            yield name, old.get(key), new.get(key)
