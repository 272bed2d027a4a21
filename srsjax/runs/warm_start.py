"""Where weights come from before the first step: a Hugging Face checkpoint, or a finished run (a warm start)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from srsjax.data.preparing.statistics import Fitted
from srsjax.errors import InputError
from srsjax.model import hf, lora
from srsjax.model.bert import BertConfig
from srsjax.model.features import table_path
from srsjax.model.int8 import Quantized, from_flat
from srsjax.model.spec import ModelSpec
from srsjax.runs.checkpoints import load_params
from srsjax.runs.run_folder import RunFolder

COMPARED = ("interaction", "split_layers", "readout", "candidate_start", "has_context")
"""What must be that of the run: weights were trained for it."""


def is_run(source: str) -> bool:
    """Whether `model.pretrained` names a run folder rather than a Hugging Face folder or hub name."""
    return bool(source) and RunFolder(source).model_file.is_file()


def read_spec(folder: RunFolder) -> ModelSpec:
    """What the model of a run is. Raises InputError where the folder is not a run of this version."""
    return ModelSpec.from_json(folder.read(folder.model_file), str(folder.model_file))


def read_encoder(source: str) -> BertConfig:
    """The encoder of a checkpoint or of a run."""
    return read_spec(RunFolder(source)).encoder if is_run(source) else hf.load_config(source)


def check_source(source: str, spec: ModelSpec) -> str:
    """One line about what `source` gives to the model of `spec`, without reading the weights.

    Raises InputError where it does not fit: a checkpoint as in `hf.load_weights`; a run that is not finished, or whose
    model reads its input in another way.
    """
    if not is_run(source):
        return f"weights: {hf.check_weights(source, spec.encoder)}"
    before = read_spec(RunFolder(source))
    step = RunFolder(source).best_step()
    if RunFolder(source).compressed.exists() and any(
        isinstance(value, Quantized) for value in stored_params(RunFolder(source)).values()
    ):
        raise InputError(f"{source}: found 8-bit weights, which cannot be trained on; start from the run they are of")
    for name in COMPARED:
        found, expected = (_shown(getattr(each, name)) for each in (spec, before))
        if found != expected:
            raise InputError(
                f"model.{name}: found {found}, but {source}, of which model.pretrained starts, was trained with "
                f"{expected}; set it to that, or start from other weights"
            )
    if before.encoder != replace(spec.encoder, **_dropouts(before.encoder)):
        raise InputError(f"{source}: its encoder is {before.encoder}, expected {spec.encoder}")
    head = "its head too" if _same_head(before, spec) else "a fresh head, for its tasks are others"
    return f"weights: {source}, checkpoint {step}, {head}"


def load_source(
    source: str, spec: ModelSpec, shapes: dict[str, jax.ShapeDtypeStruct], fitted: Fitted = Fitted()
) -> dict[str, np.ndarray]:
    """The weights that `source` has for these parameters, float32 by path; arguments checked by `check_source`.

    `fitted` has the vocabularies of the new data: the embedding of a category goes with its name, and one that the run
    did not know begins as its unknown one.
    """
    if not is_run(source):
        return hf.load_weights(source, spec.encoder)[0]
    folder = RunFolder(source)
    before = read_spec(folder)
    stored = stored_params(folder)
    known = Fitted(**folder.read(folder.manifest_file)["fitted"]).vocabularies
    for feature in spec.features:
        path = table_path(feature)
        if path in stored and feature.name in known and feature.name in fitted.vocabularies:
            row = {value: number for number, value in enumerate(known[feature.name], 1)}
            rows = [0, *(row.get(value, 0) for value in fitted.vocabularies[feature.name])]
            table = np.zeros(shapes[path].shape, np.float32)
            table[: len(rows)] = np.asarray(stored[path])[rows]
            stored[path] = table
    return {
        path: np.asarray(stored[path])
        for path, shape in shapes.items()
        if path in stored
        and stored[path].shape == shape.shape
        and (_same_head(before, spec) or not path.startswith("head/"))
    }


def stored_params(folder: RunFolder) -> dict[str, Any]:
    """The best parameters of a run by path, on the host, float32 but where `srsjax.compress` made them 8-bit.

    Raises InputError where a file of the run is damaged, or not the one that belongs to it.
    """
    folder.verify()
    if folder.compressed.exists():
        return from_flat(load_file(folder.compressed))
    return lora.merged(load_params(folder.checkpoints, folder.best_step(), None, folder.identity()))


def _same_head(before: ModelSpec, spec: ModelSpec) -> bool:
    """Whether both answer the same questions; the scale of a number may have moved with the data."""
    asked = [[(each.task, each.kind, each.classes, each.after) for each in of.outputs] for of in (before, spec)]
    return asked[0] == asked[1]


def _dropouts(encoder: BertConfig) -> dict[str, Any]:
    return {name: getattr(encoder, name) for name in ("hidden_dropout", "attention_dropout")}


def _shown(value) -> str:
    return repr(getattr(value, "name", value))
