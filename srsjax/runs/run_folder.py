"""The run folder: the one thing that evaluate, score and export need.

config.json      the resolved config            metrics.jsonl    one JSON line a log step and an evaluation
model.json       what the model is              tensorboard/     the same as scalars
manifest.json    the prepared store's manifest  checkpoints/     Orbax, the latest few and the best
tokenizer/       a Hugging Face tokenizer       valid.png test.png  ROC and calibration curves
skipped.jsonl    steps that were skipped, and their rows (`srsjax.training.anomalies`)
goodput.jsonl    where the wall time went    tensorboard/plugins/profile  traces of `profile.steps`
tracking/        ids, and what trackers keep here (`srsjax.training.tracking`)
calibration.json  how logits of the best checkpoint become calibrated (`srsjax.runs.calibration`)
reference.json   what the data and scores of the test split are like (`srsjax.runs.reference`)
report.html      what a person reads: metrics, figures, slices, errors (`srsjax.reporting.page`)
README.md        the model card: data, metrics, use (`srsjax.reporting.card`)
report.json      final metrics; written last: with it the run is finished
checksums.json   of the files that scores depend on: config, model, manifest, tokenizer, calibration; and the run's name

A file that is not as `checksums.json` says is refused; so is a checkpoint that has another run's name. A run that was
begun before there were any has none, and none is added: it is read as it is.

A run that srsjax.compress made has compressed.safetensors and compression.json instead of checkpoints and metrics.

config.json also has, under `precision`, what `model.dtype auto` was and on what kind of device, and, under `checksums`,
whether there is a checksums.json.
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from srsjax.config import TrainConfig
from srsjax.config_io import from_json, to_json
from srsjax.data.store import checksums
from srsjax.errors import InputError
from srsjax.files import is_partial, json_text, remove_folder, remove_partial_files, write_json, write_text

# Fields that do not change what is computed, so a run may resume with another value of them.
FREE = (
    "overwrite",
    "run_dir",
    "log_every",
    "track",
    "checkpoints",
    "mesh",
    "data.store",
    "batch.workers",
    "batch.micro_batches",
    "batch.eval_rows",
    "evaluate.slices",
    "model.remat",
    "profile",
    "watchdog",
)

PRECISION, CHECKSUMS = "precision", "checksums"
"""Keys of `config.json` beside the fields of the config."""


RESTORE = "restore it from a copy of the run, or train it again"
ADVICE = f", by checksums.json of the run; {RESTORE}"


class RunFolder:
    """Paths and small JSON files of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.model_file = self.path / "model.json"
        self.manifest_file = self.path / "manifest.json"
        self.report_file = self.path / "report.json"
        self.page_file = self.path / "report.html"
        self.card_file = self.path / "README.md"
        self.calibration_file = self.path / "calibration.json"
        self.reference_file = self.path / "reference.json"
        self.checksums_file = self.path / "checksums.json"
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
        elif self.path.exists() and (not self.path.is_dir() or not all(map(is_partial, self.path.iterdir()))):
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
        remove_partial_files(self.path)  # of a killed process: this one holds the lock
        before = self._record() if self.config_file.exists() else None
        old = self.config_file.exists() and before is None and self._holds_results
        data = to_json(config) | ({PRECISION: precision} if precision else {}) | ({} if old else {CHECKSUMS: True})
        # The config first: with it the folder is known as a run.
        texts = {self.config_file: json_text(data)}
        texts |= {self.manifest_file: json_text(manifest), self.model_file: json_text(model)}
        files = {self._name(file): [checksums.of_bytes(text.encode())] for file, text in texts.items()}
        files |= {f"tokenizer/{file.name}": [checksums.of_file(file)] for file in tokenizer.glob("*")}
        run = before["run"] if before else secrets.token_hex(8)
        if before:  # a kill from here on leaves some files of before and some of now, both known
            both = {name: before["files"].get(name, []) + own for name, own in files.items()}
            self._write_record(run, both, None)
        for file, text in texts.items():
            write_text(file, text)
        shutil.copytree(tokenizer, self.tokenizer, dirs_exist_ok=True)
        if not old:
            self._write_record(run, files, None)

    def check_data(self, manifest: dict) -> None:
        """Raises InputError where a store's manifest is not that of the data this run was trained on."""
        found = self.read(self.manifest_file)
        if not isinstance(found, dict) or found.get("fingerprint") != manifest["fingerprint"]:
            raise InputError(
                f"{self.path}: its data changed since the run began; restore them, or choose another --run_dir, "
                f"or --overwrite True to train anew"
            )

    def bind(self, files: Iterable[Path], best_step: int) -> None:
        """Adds files that end a run to `checksums.json`, and the step whose checkpoint they are about; a run without
        checksums stays so."""
        if record := self._record():
            own = {self._name(file): [checksums.of_file(file)] for file in files}
            self._write_record(record["run"], record["files"] | own, best_step)

    def bind_all(self, best_step: int) -> None:
        """Writes `checksums.json` for what the folder of a compressed run holds."""
        config = json.loads(self.config_file.read_text(encoding="utf-8"))
        write_json(self.config_file, config | {CHECKSUMS: True})
        files = [self.config_file, self.manifest_file, self.model_file, self.calibration_file, self.compressed]
        found = [*filter(Path.exists, files), *self.tokenizer.glob("*")]
        own = {self._name(file): [checksums.of_file(file)] for file in found}
        self._write_record(secrets.token_hex(8), own, best_step)

    def verify(self) -> None:
        """Raises InputError for a file that is missing, or not the one that the run was made with, or that is new where
        any file is read. Checks nothing in a run without checksums."""
        if not (record := self._record()):
            return
        for name, known in record["files"].items():
            if len(known) == 1:
                checksums.check_file(self.path / name, known[0], ADVICE)
            elif not (self.path / name).exists() or checksums.of_file(self.path / name) not in known:
                raise InputError(f"{self.path / name}: missing or damaged{ADVICE}")
        for file in self.tokenizer.glob("*"):
            if self._name(file) not in record["files"]:
                raise InputError(f"{file}: found a file that the run did not have; delete it")

    def identity(self) -> str:
        """The name that its checkpoints have too; empty for a run without checksums."""
        record = self._record()
        return record["run"] if record else ""

    @property
    def _holds_results(self) -> bool:
        """Whether there is anything that checksums could be missing for."""
        return (
            self.finished or self.compressed.exists() or (self.checkpoints.exists() and any(self.checkpoints.iterdir()))
        )

    def _record(self) -> dict[str, Any] | None:
        """`checksums.json`; None where the run has none. Raises InputError where it is damaged, or should be there."""
        try:
            record = json.loads(self.checksums_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            try:
                expected = CHECKSUMS in json.loads(self.config_file.read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError):
                return None  # said by `read`
            if expected and self._holds_results:
                raise InputError(f"{self.checksums_file}: missing; {RESTORE}") from None
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.checksums_file}: not JSON ({error}); {RESTORE}") from None
        if not isinstance(record, dict) or not checksums.is_sealed(record):
            raise InputError(f"{self.checksums_file}: damaged: found other contents than its checksum is of; {RESTORE}")
        return record

    def _write_record(self, run: str, files: Mapping[str, list[dict]], best_step: int | None) -> None:
        record = {"run": run, "best_step": best_step, "files": dict(files)}
        write_json(self.checksums_file, checksums.sealed(record))

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def config(self) -> TrainConfig:
        """The resolved config. Raises InputError where the folder is not a run."""
        data = self.read(self.config_file)
        if isinstance(data, dict):
            data.pop(PRECISION, None)
            data.pop(CHECKSUMS, None)
        return from_json(data, str(self.config_file))

    def precision(self) -> dict | None:
        """What `model.dtype auto` was for the run, of `srsjax.runs.precision`; None where that is not written."""
        if not self.config_file.exists():
            return None
        data = self.read(self.config_file)
        return data.get(PRECISION) if isinstance(data, dict) else None  # `config` refuses what is none

    def read(self, file: Path) -> dict:
        """One of the folder's JSON files. Raises InputError where it is missing, broken, or not the one that the run
        was made with."""
        try:
            content = file.read_bytes()
            found = json.loads(content.decode("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.path}: no {file.name}, expected a run folder written by srsjax.train") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not JSON ({error})") from None
        record = self._record()
        known = record["files"].get(self._name(file)) if record else None
        if known and checksums.of_bytes(content) not in known:
            raise InputError(f"{file}: damaged, or of another run: it has another checksum{ADVICE}")
        return found

    def best_step(self) -> int:
        """The step whose checkpoint the report is about. Raises InputError where the run is not finished."""
        if not self.finished:
            raise InputError(f"{self.path}: not finished (no report.json); run the same train command again to go on")
        try:
            step = int(self.read(self.report_file)["best_step"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{self.report_file}: found no best_step, expected what srsjax.train wrote") from None
        record = self._record()
        if record and record["best_step"] != step:
            raise InputError(f"{self.report_file}: found best_step {step}, expected {record['best_step']}")
        return step


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
