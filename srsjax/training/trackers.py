"""The trackers there are: TensorBoard, Weights & Biases, MLflow and trackio, each behind `tracking.Tracker`."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from srsjax.files import write_text

PROJECT = "srsjax"
"""Project or experiment, where the tracker's own environment variable names none."""
KEPT = "tracking"
"""Where ids are in the run folder, and what the libraries write."""
MOST_CHARACTERS = 500
"""Of a parameter that MLflow is told."""


class TensorBoardTracker:
    """Event files in `tensorboard/` of the run folder."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, step: int) -> None:
        self._folder, self._step, self._writer = folder / "tensorboard", step, None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._opened().add_scalar(name, value, step)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        self._opened().close()

    def _opened(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # late: it imports torch where that is installed, two seconds

            self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)
        return self._writer


class WandbTracker:
    """Weights & Biases; offline by `WANDB_MODE=offline`, and `wandb sync` sends it later."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, step: int) -> None:
        import wandb

        offline = os.environ.get("WANDB_MODE", "online") != "online"
        # It would else ask for a key on the terminal.
        if not offline and not wandb.login(prompt=False):
            raise RuntimeError("not logged in; run `wandb login`, or set WANDB_MODE=offline")
        known, _ = kept_id(folder / KEPT / "wandb.id", lambda: secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=known,
            resume="allow",
            config=dict(config),
            dir=os.environ.get("WANDB_DIR", str(folder / KEPT)),
            # It would else wrap what the console prints, and look for a repository to copy code from.
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        self._run.summary.update(dict(summary or {}))
        self._run.finish(exit_code=1 if summary is None else 0)


class MlflowTracker:
    """MLflow, where `MLFLOW_TRACKING_URI` says; else a SQLite file in the run folder."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        store = folder.resolve() / KEPT / "mlflow"
        own = "MLFLOW_TRACKING_URI" not in os.environ
        if own:
            store.mkdir(parents=True, exist_ok=True)
        self._last, self._client = step, (client := MlflowClient(f"sqlite:///{store}/mlflow.db" if own else None))
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)

        def create() -> str:
            known = client.get_experiment_by_name(experiment)
            at = f"{store.as_uri()}/artifacts" if own else None
            number = known.experiment_id if known else client.create_experiment(experiment, artifact_location=at)
            return client.create_run(number, run_name=name).info.run_id

        self._id, new = kept_id(folder / KEPT / "mlflow.id", create)
        if new:  # parameters of a run can be written once
            params = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in flat(config)]
            for at in range(0, len(params), 100):  # as many as one call takes
                client.log_batch(self._id, params=params[at : at + 100])
        else:
            client.update_run(self._id, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now, self._last = int(time.time() * 1000), step
        self._client.log_batch(self._id, [Metric(metric_name(key), x, now, step) for key, x in values.items()])

    def finish(self, summary: Mapping[str, float] | None) -> None:
        self.log(self._last, summary or {})
        self._client.set_terminated(self._id, "KILLED" if summary is None else "FINISHED")


class TrackioTracker:
    """trackio; its files are below the run folder, unless `TRACKIO_DIR` says where, or a Space or server is named."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / KEPT / "trackio"))  # read when it is imported
        import trackio

        known, _ = kept_id(folder / KEPT / "trackio.id", lambda: f"{name}-{secrets.token_hex(4)}")
        self._run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", PROJECT), known, config=dict(config), resume="allow", embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, float] | None) -> None:
        if summary:
            self._run.log(dict(summary))
        self._run.finish()


def kept_id(file: Path, make: Callable[[], str]) -> tuple[str, bool]:
    """The id in a file, and whether it is new; made and written where there is none."""
    if file.exists() and (known := file.read_text(encoding="utf-8").strip()):
        return known, False
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, made + "\n")
    return made, True


def metric_name(key: str) -> str:
    """A key as MLflow takes it: letters, digits and `_-. :/`; `valid/ndcg@10` becomes `valid/ndcg_at_10`."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_"))


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a config by dotted name; lists are whole, as text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
