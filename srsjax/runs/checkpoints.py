"""Orbax checkpoints of a run: the latest few and the best, written in the background, restored to target shardings."""

from __future__ import annotations

import gc
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from srsjax import distributed
from srsjax.data.store import checksums
from srsjax.errors import InputError
from srsjax.files import remove_folder
from srsjax.runs import array_checksums
from srsjax.runs.state import TrainState

PARAMS, REST = "params", "rest"
"""The two parts of a checkpoint: inference reads the first alone, trained and frozen parameters together."""
METADATA = "_CHECKPOINT_METADATA"
"""Orbax's file of what is no array."""


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
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for writes under way.

    Each has the checksums of its arrays, and the name of its run, in its metadata; none is restored that differs.
    """

    def __init__(self, folder: Path, keep: int = 1, run: str = ""):
        """`run`: the name of the run (`RunFolder.identity`), which checkpoints must have; empty where it has none."""
        self._policy, self._folder, self._run = _LatestAndBest(keep), folder.absolute(), run
        self._saving: Any = None
        # Orbax logs an error with its traceback in every thread that it passes; it is raised here all the same.
        absl_logging.set_verbosity(absl_logging.FATAL)
        self._orbax = ocp.training.Checkpointer(
            self._folder, preservation_policy=self._policy, cleanup_tmp_directories=True
        )

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_) -> None:
        self._orbax.close()
        self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is on disk. Orbax ends the thread of a save, and closes its files, when it is asked
        for the result: without that each checkpoint would leave one behind."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, whole or damaged."""
        return max(self._steps(), default=None)

    def progress(self, step: int) -> dict:
        """What `save` was given as progress at that step. Raises InputError where it is damaged."""
        return _read(self._folder / str(step), self._run)["progress"]

    def save(self, step: int, state: TrainState, progress: dict, best_step: int | None) -> None:
        """Starts writing a checkpoint; returns when the arrays are copied, before they are on disk.

        Args:
          step: optimizer steps done.
          progress: JSON of everything else a resumed run needs (input state, early stopping, config).
          best_step: step of the best checkpoint so far, kept whatever its age; None where there is none.
        """
        self._policy.best_step = best_step
        parts = _parts(state)
        arrays = array_checksums.merged(distributed.gather(array_checksums.described(parts)))
        about = checksums.sealed({"step": step, "run": self._run, "progress": progress, "arrays": arrays})
        self.wait()  # Orbax would, too
        self._saving = self._orbax.save_checkpointables_async(step, parts, custom_metadata=about, force=True)

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state at a step, with the shapes, dtypes and shardings of `target` (ShapeDtypeStructs). Raises InputError
        where it is damaged, or of another model."""
        loaded = _load(self._folder / str(step), _parts(target), self._run)
        trained, frozen = ({path: loaded[PARAMS][path] for path in own} for own in (target.params, target.frozen))
        return TrainState(loaded[REST]["step"], trained, loaded[REST]["opt"], frozen)

    def restore_newest(
        self, target: TrainState, said: Callable[[str], None] = print
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """State and progress of the newest checkpoint; None where there is no checkpoint.

        A damaged one is moved to `damaged/` in the run folder, `said` is told, and the one before it is taken. Raises
        InputError where all are damaged, and for one of another model.
        """
        named = ""
        while (step := self.latest) is not None:
            found, why = None, ""
            try:
                found = self.restore(step, target), self.progress(step)
            except Damaged as error:
                why = str(error)
            if not (named := next(filter(None, distributed.gather(why)), "")):
                return found
            others = [other for other in self._steps() if other != step]
            if not others:
                break
            distributed.on_first(partial(self._set_aside, step))
            self._orbax.reload()
            said(f"{named}; moved to {self._folder.parent / 'damaged'}, and the one of step {max(others)} is taken")
        if named:
            raise InputError(f"{named}; there is no other: train again with --overwrite True, or another --run_dir")
        return None

    def _steps(self) -> list[int]:
        """Steps of all checkpoints; those that are being written have names of their own."""
        return [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]

    def _set_aside(self, step: int) -> None:
        target = self._folder.parent / "damaged" / str(step)
        target.parent.mkdir(exist_ok=True)
        remove_folder(target)
        (self._folder / str(step)).rename(target)


class Damaged(InputError):
    """A checkpoint is not as it was written."""


def load_params(folder: Path, step: int, target: dict | None, run: str = "") -> dict[str, jax.Array]:
    """Parameters of a run's checkpoint, trained and frozen.

    Args:
      target: their shapes, dtypes and shardings; with None they are numpy arrays as they were saved.
      run: as in `Checkpointer`.

    Raises:
      InputError: the checkpoint is missing, damaged, or of another run or model.
    """
    where = folder.absolute() / str(step)
    if not where.is_dir():
        raise InputError(f"{where}: no such checkpoint")
    return _load(where, {PARAMS: target}, run)[PARAMS]


def _parts(state: TrainState) -> dict[str, Any]:
    return {PARAMS: state.all_params, REST: {"step": state.step, "opt": state.opt}}


def _load(where: Path, target: dict[str, Any], run: str) -> dict[str, Any]:
    """Parts of a checkpoint, checked; a part that is None as numpy arrays."""
    arrays = _read(where, run)["arrays"]
    own = {path: each for path, each in arrays.items() if path.partition("/")[0] in target}
    with _one_line_errors(where):
        for name in [name for name, part in target.items() if part is None]:
            saved = ocp.checkpointables_metadata(where).metadata[name]
            target = target | {name: {path: np.empty(array.shape, array.dtype) for path, array in saved.items()}}
    if own and (other := array_checksums.misfits(target, own)):
        raise InputError(f"{where}: of another model: {other[0]} and {len(other) - 1} more arrays have another shape")
    with _one_line_errors(where):
        loaded = ocp.load_checkpointables(where, target)
    if own and (bad := array_checksums.damaged(loaded, own)):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise Damaged(f"{where}: damaged: {bad[0]}{more} differ from their checksums")
    return loaded


def _read(where: Path, run: str) -> dict[str, Any]:
    """What `save` wrote besides the arrays: `progress`, and `arrays`, {} where they have no checksums."""
    try:
        found = json.loads((where / METADATA).read_text(encoding="utf-8"))["custom_metadata"]
        keys = set(found)
    except FileNotFoundError:
        raise Damaged(f"{where}: damaged: no {METADATA}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{where / METADATA}: damaged: not the JSON that was written ({error})") from None
    if not run and "arrays" not in keys and "next_step" in keys:  # of a run without checksums
        return {"progress": found, "arrays": {}}
    if not checksums.is_sealed(found):
        raise Damaged(f"{where / METADATA}: damaged: found other contents than its checksum is of")
    if str(found["step"]) != where.name or (run and found["run"] != run):
        raise Damaged(f"{where / METADATA}: of another checkpoint: step {found['step']} of run {found['run']}")
    return found


def _is_no_leftover(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


@contextmanager
def _one_line_errors(where: Path):
    """Turns what Orbax and TensorStore raise, of many kinds, for a file that is not as they wrote it into `Damaged`."""
    try:
        yield
        return
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        damaged = Damaged(f"{where}: damaged: {type(error).__name__}: {reason[:200]}")
    # Orbax leaves the other tasks of its event loop behind; each would print a traceback when it is collected.
    logging.getLogger("asyncio").addFilter(_is_no_leftover)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = hook
    raise damaged


def better(value: float, best: float | None, mode: str) -> bool:
    """Whether a metric value beats the best so far; the first defined value does, an undefined one (NaN) never."""
    if math.isnan(value):
        return False
    return best is None or (value > best if mode == "max" else value < best)
