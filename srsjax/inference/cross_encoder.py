"""A cross-encoder as Hugging Face folders hold it, as what a `Scorer` is made of.

These are the `...ForSequenceClassification` models of the BERT and RoBERTa families that transformers trains,
sentence-transformers' `CrossEncoder` loads and `srsjax.export` writes: one sequence of two texts, the pooled first
token, a dense layer. The schema is a text `query` and a text `document`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srsjax.config import Batch, Dtype, Mesh, Model, Schema, Task, Text, TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.data.preparing.encode import Encoded, Encoder
from srsjax.data.preparing.sources import Sources
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.preparing.values import Value
from srsjax.data.store.arrays import Items
from srsjax.data.store.tokenizer import SETTINGS_FILES, TOKENIZER_FILES, TextEncoder, load_tokenizer
from srsjax.errors import InputError
from srsjax.hub import model_folder, read_json
from srsjax.model import hf
from srsjax.model.spec import ModelSpec
from srsjax.objectives import objective
from srsjax.runs.precision import choose_precision
from srsjax.runs.quantization import quantized
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Quantize, Session, for_scoring, open_session, with_params
from srsjax.runs.shapes import batch_shape
from srsjax.runs.sharding import put_same
from srsjax.runs.spec import layout_of

ROWS = 32
"""Rows of a batch, rounded up to what the mesh divides."""
ROW_TOKENS = 128
"""The tokens of a row are a multiple of it: several short pairs fill a row, and kernels like it."""
TOKENS_A_PAIR = 8
"""A row of L tokens holds L / 8 pairs at most."""
ST_SETTINGS = "config_sentence_transformers.json"
IDENTITY = "Identity"
"""The end of the name of torch's activation that returns logits."""


@dataclass(frozen=True)
class Loaded:
    """What `Scorer` is made of."""

    config: TrainConfig
    session: Session
    params: dict[str, jax.Array]
    encoder: Encoder
    shape: BatchShape


def is_hugging_face(source: str | Path) -> bool:
    """Whether a name is that of a Hugging Face folder or of a model on the hub, not of a run folder: a folder with a
    `config.json` and no `model.json`, or `org/name` where no folder `org` is."""
    path = Path(source)
    if path.exists():
        return not RunFolder(path).model_file.exists() and "model_type" in _settings(path / "config.json")
    return isinstance(source, str) and source.count("/") == 1 and not Path(source.split("/")[0] or "/").exists()


def load_cross_encoder(
    source: str,
    mesh: Mesh,
    max_length: int = 0,
    devices: Sequence[jax.Device] | None = None,
    dtype: Dtype = "float32",
    quantize: Quantize = "none",
) -> Loaded:
    """Reads weights, tokenizer and tasks.

    Args:
      source: folder or hub name.
      max_length: most tokens of a pair, special ones included; the longer text of a longer pair is cut first, as
        transformers does. 0 means what the tokenizer and the positions allow.
      devices: those of the mesh; by default all.
      dtype: as `model.dtype`.
      quantize: as in `load_run`.

    Raises:
      InputError: not a model of these families, no head or pooler, or a `max_length` that does not fit.
    """
    files = tuple(dict.fromkeys((*hf.FILES, *TOKENIZER_FILES, *SETTINGS_FILES, ST_SETTINGS)))
    folder = str(model_folder(source, files, f"{hf.EXPECTED}, or a run folder of srsjax.train"))
    bert = replace(hf.load_config(folder), has_pooler=True)
    raw = read_json(Path(folder) / "config.json")
    tasks, fitted = tasks_of(raw, source, _activation(raw, Path(folder)))
    spec = ModelSpec(bert, outputs=tuple(objective(task).outputs(fitted) for task in tasks))
    _check_head(source, folder, spec)
    text = load_tokenizer(folder)
    longest = _longest(folder, spec, max_length)
    special = len(text.template.prefix + text.template.between + text.template.suffix)
    if longest < special + 2:
        raise InputError(f"max_length: found {longest}, expected at least {special + 2}: {special} tokens are special")
    budget, tokens = longest - special, -(-longest // ROW_TOKENS) * ROW_TOKENS
    schema = Schema(
        context=(Text("query", max_tokens=budget),), candidate=(Text("document", max_tokens=budget),), tasks=tasks
    )
    config = TrainConfig(
        schema=schema,
        model=Model(pretrained=source, interaction="cross", readout="pooled", dtype=dtype),
        batch=Batch(rows=ROWS, tokens=tokens, candidates=tokens // TOKENS_A_PAIR),
        mesh=mesh,
    )
    config = choose_precision(config.model, bert, training=False).apply(config)
    spec = replace(spec, tokens=tokens, candidates=config.batch.candidates, longest_part=longest)
    session = open_session(config, spec, devices, training=False)
    weights, _ = hf.load_weights(folder, bert, spec.num_outputs)
    params = {path: put_same(weights[path], session.shardings[path]) for path in session.shapes}
    if quantize == "int8":
        session, params = with_params(session, quantized(params))
    params = for_scoring(session, params)
    encoder = PairEncoder(Sources(schema, config.data), text, fitted, budget)
    return Loaded(config, session, params, encoder, batch_shape(config, spec, layout_of(spec, text), session.mesh))


class PairEncoder(Encoder):
    """Encodes pairs of plain texts, cut to a number of tokens together."""

    def __init__(self, sources: Sources, text: TextEncoder, fitted: Fitted, budget: int):
        """`budget`: most tokens of both texts together, without special ones."""
        super().__init__(sources, {}, text, fitted)
        self.budget = budget

    def encode_values(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> Encoded:
        """As `Encoder.encode_values`; where a pair is cut, each pair is an impression of its own."""
        encoded = super().encode_values(contexts, candidates)
        split, impression = encoded.split, encoded.split.impression
        first, second = split.context.lengths[impression], encoded.items.tokens.lengths[split.item]
        if not (first + second > self.budget).any():
            return encoded
        kept = longest_first(first, second, self.budget)
        count = len(split.item)
        items = Items(encoded.items.tokens.take(split.item).truncate(kept[1]))
        own = replace(
            split,
            context=split.context.take(impression).truncate(kept[0]),
            candidates=np.arange(count + 1),
            item=np.arange(count),
            user=np.arange(count),
        )
        return replace(encoded, split=own, items=items)


def longest_first(first: np.ndarray, second: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens [n] of each text of pairs are kept, as `truncation=True` of transformers does: the longer text
    is cut until both are `most` together, and both alike where the shorter one is above half."""
    short, long = np.minimum(first, second), np.maximum(first, second)
    cut = short + long > most
    long = np.where(cut, np.maximum(short, most - short), long)
    both = short + long > most
    short, long = np.where(both, most // 2, short), np.where(both, most - most // 2, long)
    return np.where(first <= second, short, long), np.where(first <= second, long, short)


def tasks_of(raw: dict[str, Any], source: str, activation: str) -> tuple[tuple[Task, ...], Fitted]:
    """The tasks of a classifier's `config.json`, with what is known of their labels.

    One label is a binary task; a number where sentence-transformers' `activation` is the identity, or where none is
    named and the config says `regression`. Several are one multiclass task, or a binary task each where it says
    `multi_label_classification`.

    Raises InputError for the labels of several tasks of which some have classes (`srsjax.export` writes those).
    """
    labels = raw.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(raw.get("num_labels", 2)))}
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    problem = raw.get("problem_type") or ""
    if len(names) == 1:
        if activation == IDENTITY or (not activation and problem == "regression"):
            return (Task(names[0], kind="regression"),), Fitted(labels={names[0]: {"mean": 0.0, "std": 1.0}})
        return (Task(names[0]),), Fitted()
    if problem == "multi_label_classification":
        return tuple(Task(name) for name in names), Fitted()
    if not problem and any("/" in name for name in names):
        raise InputError(f"{source}: its labels ({', '.join(names)}) are those of several tasks; load the run instead")
    return (Task("label", kind="multiclass"),), Fitted(classes={"label": names})


def _activation(raw: dict[str, Any], folder: Path) -> str:
    """The last part of the name of sentence-transformers' activation, wherever one of its versions wrote it; empty
    where there is none."""
    places = (_settings(folder / ST_SETTINGS), raw.get("sentence_transformers") or {})
    named = next((each["activation_fn"] for each in places if each.get("activation_fn")), "")
    named = named or raw.get("sbert_ce_default_activation_function") or ""
    return str(named).rpartition(".")[2]


def _check_head(source: str, folder: str, spec: ModelSpec) -> None:
    """Raises InputError where the weights are those of a bare encoder, or of a head of another kind."""
    fresh = hf.check_weights(folder, spec.encoder, spec.num_outputs).fresh
    if fresh:
        raise InputError(
            f"{source}: no classification head ({', '.join(fresh)} not in its weights), found an encoder, expected a "
            f"model of {spec.num_outputs} labels; train one from it with srsjax.train --model.pretrained"
        )


def _longest(folder: str, spec: ModelSpec, max_length: int) -> int:
    """Most tokens of a pair. Raises InputError where `max_length` is above the encoder's positions."""
    positions = spec.encoder.max_positions - spec.encoder.position_offset
    if max_length > positions:
        raise InputError(f"max_length: found {max_length}, expected at most the {positions} positions of the encoder")
    named = _settings(Path(folder) / "tokenizer_config.json").get("model_max_length") or positions
    return max_length or int(min(named, positions))


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
