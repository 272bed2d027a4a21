"""Orbax checkpoints of a run: the latest few and the best, written in the background, restored to target shardings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from srsjax.errors import InputError
from srsjax.runs.state import TrainState

PARAMS, REST = "params", "rest"
"""The two parts of a checkpoint: inference reads the first alone, trained and frozen parameters together."""


class _LatestAndBest:
    """Orbax preservation policy: the newest `keep` checkpoints and the one at `best_step`."""

    def __init__(self, keep: int):
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        del context
        newest = len(checkpoints) - max(self.keep, 1)
        return [i >= newest or info.step == self.best_step for i, info in enumerate(checkpoints)]


class Checkpointer:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for writes under way."""

    def __init__(self, folder: Path, keep: int = 1):
        self._policy = _LatestAndBest(keep)
        self._orbax = ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=self._policy, cleanup_tmp_directories=True
        )

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_) -> None:
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._orbax.latest.step if self._orbax.latest else None

    def progress(self, step: int) -> dict:
        """What `save` was given as progress at that step."""
        return self._orbax.metadata(step).custom_metadata

    def save(self, step: int, state: TrainState, progress: dict, best_step: int | None) -> None:
        """Starts writing a checkpoint; returns when the arrays are copied, before they are on disk.

        Args:
          step: optimizer steps done.
          progress: JSON of everything else a resumed run needs (input state, early stopping, config).
          best_step: step of the best checkpoint so far, kept whatever its age; None where there is none.
        """
        self._policy.best_step = best_step
        parts = {PARAMS: state.all_params, REST: {"step": state.step, "opt": state.opt}}
        self._orbax.save_checkpointables_async(step, parts, custom_metadata=progress, force=True)

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state at a step, with the shapes, dtypes and shardings of `target` (ShapeDtypeStructs)."""
        parts = {PARAMS: target.all_params, REST: {"step": target.step, "opt": target.opt}}
        loaded = self._orbax.load_checkpointables(step, parts)
        trained, frozen = ({path: loaded[PARAMS][path] for path in own} for own in (target.params, target.frozen))
        return TrainState(loaded[REST]["step"], trained, loaded[REST]["opt"], frozen)


def load_params(folder: Path, step: int, target: dict | None) -> dict[str, jax.Array]:
    """Parameters of a run's checkpoint, trained and frozen. Raises InputError where the checkpoint is missing.

    `target` says their shapes, dtypes and shardings; with None they are numpy arrays as they were saved.
    """
    where = folder / str(step)
    if not where.is_dir():
        raise InputError(f"{where}: no such checkpoint")
    if target is None:
        saved = ocp.checkpointables_metadata(where.absolute()).metadata[PARAMS]
        target = {path: np.empty(array.shape, array.dtype) for path, array in saved.items()}
    return ocp.load_checkpointables(where.absolute(), {PARAMS: target})[PARAMS]


def better(value: float, best: float | None, mode: str) -> bool:
    """Whether a metric value beats the best so far; the first defined value does, an undefined one (NaN) never."""
    if math.isnan(value):
        return False
    return best is None or (value > best if mode == "max" else value < best)
