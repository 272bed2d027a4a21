"""What a teacher says of the training rows: a finished run whose logits another one learns from (`config.Distill`).

The teacher reads the student's own tables with its schema and tokenizer, and its logits go to the student's candidates
by their number in the log. They are computed once and kept beside the stores, under a name made of the teacher's files,
the student's store and its outputs: a resumed run reads the same numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from srsjax import distributed
from srsjax.config import Mesh, TrainConfig
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import labelled_store
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split, Store, open_store
from srsjax.data.store.manifest import fingerprint
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.errors import InputError
from srsjax.files import atomic_file, remove_folder, write_json
from srsjax.model.spec import ModelSpec, Outputs, output_slices
from srsjax.runs.description import describe_run
from srsjax.runs.evaluation import predict_split
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import for_scoring, load_run
from srsjax.runs.shapes import batch_shape
from srsjax.runs.spec import layout_of
from srsjax.runs.warm_start import read_spec

ORDERS = ("listwise", "pairwise")
"""Kinds that only the differences of logits train."""
TAUGHT = {"binary": ("binary",), "multiclass": ("multiclass",), "regression": ("regression",)} | dict.fromkeys(
    ORDERS, (*ORDERS, "binary")
)
"""Kinds of a teacher's task by those of the student's."""


def teacher_logits(config: TrainConfig, spec: ModelSpec, store: Store, say: Callable[[str], None]) -> np.ndarray | None:
    """The teacher's logits of the candidates of the training split, [M, K] float32, as the student's outputs have them;
    0 for candidates that are not trained on and the teacher does not read. None without a teacher.

    Args:
      spec: the student's.
      store: the student's, with the training split.
      say: is told where the logits come from.

    Raises:
      InputError: the teacher is no finished run, lacks a task of the student, or cannot read these tables.
    """
    if not config.distill.teacher:
        return None
    teacher = RunFolder(config.distill.teacher)
    described, before = describe_run(teacher), read_spec(teacher)
    columns = matching_columns(str(teacher.path), spec.outputs, before.outputs)
    name = fingerprint(
        {
            "teacher": described,
            "store": store.manifest["fingerprint"],
            "outputs": [asdict(each) for each in spec.outputs],
        }
    )
    file = Path(config.data.store) / f"teacher-{name}.npy"
    if distributed.on_first(file.exists):
        say(f"{file}: logits of {teacher.path}, computed before")
    else:
        say(f"{file}: computing the logits of {teacher.path}")
        found = as_outputs(_computed(config, teacher, store), columns, spec.outputs, before.outputs)
        distributed.on_first(lambda: _save(file, found))
    distributed.wait_until_seen(file)
    return np.load(file, mmap_mode="r", allow_pickle=False)


def placeholder(config: TrainConfig, spec: ModelSpec, store: Store) -> np.ndarray | None:
    """Zeros in the place of `teacher_logits`, for plans, which run no teacher."""
    if not config.distill.teacher:
        return None
    return np.zeros((len(store.split("train").item), spec.num_outputs), np.float32)


def record_teacher(folder: RunFolder, config: TrainConfig) -> None:
    """Writes which teacher a run has. Raises InputError where it began with another one."""
    if not config.distill.teacher:
        return
    file, described = folder.path / "teacher.json", describe_run(RunFolder(config.distill.teacher))
    if file.exists() and folder.read(file) != described:
        raise InputError(
            f"{config.distill.teacher}: the teacher changed since {folder.path} began; restore it, or choose another "
            "--run_dir, or --overwrite True to train anew"
        )
    write_json(file, described)


def matching_columns(where: str, wanted: tuple[Outputs, ...], given: tuple[Outputs, ...]) -> list[int]:
    """Which of the teacher's logits each of the student's is taught by, [K]: tasks by name, classes by name.

    Raises InputError naming the teacher (`where`) where it has no such task.
    """
    known = {each.task: (each, own) for each, own in zip(given, output_slices(given), strict=True)}
    columns: list[int] = []
    for outputs in wanted:
        found, own = known.get(outputs.task, (None, slice(0)))
        kinds = TAUGHT.get(outputs.kind, ())
        if found is None or found.kind not in kinds or set(found.classes) != set(outputs.classes):
            has = ", ".join(f"{each.task} ({each.kind})" for each in given)
            raise InputError(
                f"distill.teacher: found tasks {has} in {where}, expected {outputs.task!r} of kind "
                f"{' or '.join(kinds) or 'that is not ' + outputs.kind}"
                f"{' with the same classes' if outputs.classes else ''}"
            )
        columns += [own.start + found.classes.index(each) for each in outputs.classes] or [own.start]
    return columns


def as_outputs(
    logits: np.ndarray, columns: list[int], wanted: tuple[Outputs, ...], given: tuple[Outputs, ...]
) -> np.ndarray:
    """The teacher's logits [M, K'] as those of the student, [M, K] float32: a number in the scale of its labels."""
    made, scales = logits[:, columns].astype(np.float32), {each.task: each for each in given}
    for outputs, own in zip(wanted, output_slices(wanted), strict=True):
        if outputs.kind == "regression":
            before = scales[outputs.task]
            made[:, own] = (before.mean + before.deviation * made[:, own] - outputs.mean) / outputs.deviation
    return made


def _computed(config: TrainConfig, teacher: RunFolder, store: Store) -> np.ndarray:
    """The teacher's logits [M, K'] of the student's training candidates."""
    train = store.split("train")
    own = replace(teacher.config(), data=config.data, mesh=Mesh())
    homes = [Sources(each.schema, each.data).home for each in (config, own)]
    if config.data.negatives and homes[0] != homes[1]:
        raise InputError(
            f"distill.teacher: with data.negatives items of catalogue {homes[0]!r} are drawn, expected a teacher whose "
            f"candidates are those too; {teacher.path} reads {homes[1] or 'the columns of the log'}"
        )
    if teacher.read(teacher.manifest_file)["fingerprint"] == store.manifest["fingerprint"]:
        return _predict(own, teacher, train, store.items)
    folder = Path(distributed.on_first(lambda: str(_read_by(own, teacher))))
    try:
        distributed.wait_until_seen(folder / "store" / "manifest.json")
        read = open_store(folder / "store")
        given = read.split("test")
        given = given.take(np.unique(given.impression[np.isin(given.example, train.example)]))
        logits = _predict(own, teacher, given, read.items)
    finally:
        distributed.on_first(lambda: remove_folder(folder))
    return joined(logits, given.example, train, str(teacher.path))


def joined(logits: np.ndarray, example: np.ndarray, train: Split, where: str) -> np.ndarray:
    """Logits [m, K] of the candidates numbered `example` [m] in the order of the training split, [M, K].

    Raises InputError where a candidate that is trained on is not among them.
    """
    order = np.argsort(example)
    place = np.minimum(np.searchsorted(example, train.example, sorter=order), max(len(order) - 1, 0))
    rows = order[place] if len(order) else np.full(len(train.item), -1)
    known = (example[rows] == train.example) if len(order) else np.zeros(len(train.item), bool)
    lost = int((~known & (train.weights > 0).any(axis=1)).sum())
    if lost:
        raise InputError(
            f"distill.teacher: {lost:,} of {len(known):,} training candidates are left out where {where} reads these "
            "tables with its schema; expected all (missing values that its features drop?)"
        )
    return np.where(known[:, None], logits[rows], 0).astype(np.float32)


def _read_by(config: TrainConfig, teacher: RunFolder) -> Path:
    """A temporary folder beside the stores, with the log in it as the teacher encodes it."""
    parent = Path(config.data.store)
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".teacher-", dir=parent))
    try:
        encoder = load_encoder(config, teacher.path)
        labelled_store(encoder, config.data.log, folder / "store")
    except InputError as error:
        remove_folder(folder)
        raise InputError(f"distill.teacher: {teacher.path} cannot read these tables: {error}") from None
    return folder


def _predict(config: TrainConfig, teacher: RunFolder, split: Split, items: Items) -> np.ndarray:
    """Logits [M, K] float32 of the teacher's best checkpoint, on all devices, rows divided."""
    session, params = load_run(teacher, config)
    layout = layout_of(session.spec, load_tokenizer(str(teacher.tokenizer)))
    shape = batch_shape(config, session.spec, layout, session.mesh)
    logits = predict_split(session.predict_step, for_scoring(session, params), split, items, shape, session.mesh)
    if not np.isfinite(logits).all():
        raise InputError(f"distill.teacher: the logits of {teacher.path} are not finite")
    return logits


def _save(file: Path, logits: np.ndarray) -> None:
    with atomic_file(file) as partial, open(partial, "wb") as opened:
        np.save(opened, logits)
