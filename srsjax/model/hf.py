"""Encoder weights read under Hugging Face's names: `config.json` and safetensors, nothing unpickled.

`hf_export` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from srsjax.errors import InputError
from srsjax.hub import model_folder, read_json
from srsjax.model.bert import BertConfig

FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
"""Model types read, and whose names and position numbering they use."""

FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")
EXPECTED = "config.json and model.safetensors"

HEADS_AND_BUFFERS = re.compile(
    r"^((bert|roberta)\.)?(cls\.|lm_head\.|classifier\.|qa_outputs\.|pooler\.|embeddings\.(position|token_type)_ids$)"
)
"""What checkpoints of these families are known to hold besides the encoder's own weights."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights of a checkpoint and of the parameters of the encoder."""

    source: str
    """Folder or hub name."""
    loaded: tuple[str, ...]
    """Paths of parameters that were read."""
    fresh: tuple[str, ...]
    """Paths of parameters the checkpoint does not have and that stay as `ctr.init` made them (pooler, head)."""
    unused: tuple[str, ...]
    """Names in the checkpoint of heads and buffers that this model does not have."""
    unknown: tuple[str, ...]
    """Names in the checkpoint that belong to no part of this family known here."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.loaded)} parameters read"]
        for text, names in (
            ("not in the checkpoint, freshly initialised", self.fresh),
            ("heads and buffers not used", self.unused),
            ("UNKNOWN, not used", self.unknown),
        ):
            if names:
                parts.append(f"{text}: {', '.join(names)}")
        return "; ".join(parts)


# ---------------------------------------------------------------------------------------------- in


def load_config(source: str) -> BertConfig:
    """The encoder configuration of a Hugging Face folder or hub name.

    Raises:
      InputError: no such folder or model, no readable `config.json`, or not an encoder of the BERT or RoBERTa family.
    """
    path = model_folder(source, FILES, EXPECTED) / "config.json"
    raw = read_json(path)
    # Checkpoints of the first BERT releases name no type; their weights' names decide whether they are one.
    model_type = raw.get("model_type", "bert")
    if model_type not in FAMILIES:
        raise InputError(f"{path}: model_type {model_type!r}, expected one of {', '.join(FAMILIES)}")
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise InputError(f"{path}: position_embedding_type {positions!r}, expected 'absolute'")
    if raw.get("is_decoder"):
        raise InputError(f"{path}: is_decoder is true, expected an encoder")
    try:
        pad_id = raw.get("pad_token_id", 1)
        return BertConfig(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=int(raw["num_attention_heads"]),
            intermediate_size=int(raw["intermediate_size"]),
            max_positions=int(raw["max_position_embeddings"]),
            type_vocab_size=int(raw.get("type_vocab_size", 2)),
            layer_norm_eps=float(raw.get("layer_norm_eps", 1e-12)),
            activation=raw.get("hidden_act", "gelu"),
            hidden_dropout=float(raw.get("hidden_dropout_prob", 0.1)),
            attention_dropout=float(raw.get("attention_probs_dropout_prob", 0.1)),
            initializer_range=float(raw.get("initializer_range", 0.02)),
            position_offset=pad_id + 1 if FAMILIES[model_type] == "roberta" else 0,
        )
    except KeyError as error:
        raise InputError(f"{path}: no field {error}, expected the config.json of a BERT or RoBERTa model") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_weights(source: str, bert: BertConfig, num_tasks: int = 0) -> LoadReport:
    """What `load_weights` would read, without reading it. Arguments and errors as there."""
    return _find(source, bert, num_tasks)[0]


def load_weights(source: str, bert: BertConfig, num_tasks: int = 0) -> tuple[dict[str, np.ndarray], LoadReport]:
    """Parameters of the encoder, and of a head of `num_tasks` outputs where the checkpoint has one, by path.

    Args:
      source: folder or hub name.
      bert: the encoder they are for; without a pooler, the checkpoint's is not used.
      num_tasks: outputs T of the head; 0 leaves the checkpoint's head unused.

    Returns:
      Float32 arrays by path as `ctr.init` names them, and the report. Parameters named in `report.fresh` are not among
      them: keep the initial ones.

    Raises:
      InputError: no safetensors file, an unreadable one, or encoder weights missing or of another shape, each named.
    """
    report, weights, names, files = _find(source, bert, num_tasks)
    tensors = _read_tensors(files, {names[name] for weight in weights for name in weight.names})
    return {
        weight.path: weight.from_stored([tensors[names[name]] for name in weight.names]) for weight in weights
    }, report


def _find(source: str, bert: BertConfig, num_tasks: int) -> tuple[LoadReport, list[Weight], dict[str, str], list[Path]]:
    """The report, the weights to read, the checkpoint's names by plain ones, and its files."""
    files = _weight_files(source)
    shapes = _shapes(files)
    names = _plain_names(shapes)
    weights = list(stored_weights(bert, num_tasks))
    fresh = [weight for weight in weights if weight.optional and not _fits(weight, names, shapes)]
    needed = [weight for weight in weights if weight not in fresh]
    _check(source, needed, names, shapes)

    read = {names[name] for weight in needed for name in weight.names}
    others = sorted(shapes.keys() - read)
    report = LoadReport(
        source=source,
        loaded=tuple(weight.path for weight in needed),
        fresh=tuple(weight.path for weight in fresh),
        unused=tuple(name for name in others if HEADS_AND_BUFFERS.match(name)),
        unknown=tuple(name for name in others if not HEADS_AND_BUFFERS.match(name)),
    )
    return report, needed, names, files


def _fits(weight: Weight, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether the checkpoint has this head or pooler; a head of another number of outputs is another head."""
    present = all(name in names for name in weight.names)
    return present and (not weight.path.startswith("head/") or shapes[names[weight.names[0]]] == weight.stored_shape)


def _check(source: str, weights: list[Weight], names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises InputError naming every weight that is missing or of another shape."""
    problems = []
    for weight in weights:
        for name in weight.names:
            if name not in names:
                problems.append(f"{name} is missing")
            elif shapes[names[name]] != weight.stored_shape:
                found, expected = list(shapes[names[name]]), list(weight.stored_shape)
                problems.append(f"{names[name]} is {found}, expected {expected}")
    if problems:
        raise InputError(
            f"{source}: {len(problems)} weights do not fit config.json ({'; '.join(problems)}); use a checkpoint of "
            "a BERT or RoBERTa encoder with its own config.json"
        )


# ---------------------------------------------------------------------------------------------- files


def _weight_files(source: str) -> list[Path]:
    """The safetensors file, or the shards that the index names."""
    folder = model_folder(source, FILES, EXPECTED)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        weight_map = read_json(index).get("weight_map", {})
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.exists():
                raise InputError(f"{file}: no such file, but {index.name} names it; copy all shards")
        return files
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder}: only pytorch_model.bin, expected model.safetensors (nothing is unpickled); convert it with "
            f"transformers: AutoModel.from_pretrained({str(folder)!r}).save_pretrained('converted')"
        )
    raise InputError(f"{folder}: no model.safetensors, expected a Hugging Face model folder with safetensors weights")


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _open(file) as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def _read_tensors(files: list[Path], wanted: set[str]) -> dict[str, np.ndarray]:
    """The wanted tensors in float32 (checkpoints may be float16 or bfloat16)."""
    read: dict[str, np.ndarray] = {}
    for file in files:
        with _open(file) as tensors:
            read |= {
                name: tensors.get_tensor(name).astype(np.float32, copy=False) for name in wanted & set(tensors.keys())
            }
    return read


def _open(file: Path):
    try:
        return safe_open(file, "np")
    except SafetensorError as error:
        raise InputError(f"{file}: not a whole safetensors file ({error}); copy or download it again") from None


# ---------------------------------------------------------------------------------------------- names and shapes


@dataclass(frozen=True)
class Weight:
    """One parameter here and the tensors that hold it there (three for the fused query, key and value)."""

    path: str
    names: tuple[str, ...]
    """Hugging Face names without the prefix of the encoder."""
    stored_shape: tuple[int, ...]
    """Of each tensor there; kernels are [out, in]."""
    optional: bool = False

    @property
    def is_kernel(self) -> bool:
        return self.path.endswith("/kernel")

    def from_stored(self, tensors: list[np.ndarray]) -> np.ndarray:
        tensors = [tensor.T if self.is_kernel else tensor for tensor in tensors]
        return np.ascontiguousarray(np.stack(tensors, axis=-2) if len(tensors) > 1 else tensors[0])

    def to_stored(self, array: np.ndarray) -> list[np.ndarray]:
        parts = list(np.moveaxis(array, -2, 0)) if len(self.names) > 1 else [array]
        return [part.T if self.is_kernel else part for part in parts]


def stored_weights(bert: BertConfig, num_tasks: int) -> Iterator[Weight]:
    """Every parameter of the encoder, of its pooler and of a head of `num_tasks` outputs."""
    d, a, inner = bert.hidden_size, bert.attention_width, bert.intermediate_size
    tables = {"token": ("word", bert.vocab_size), "position": ("position", bert.max_positions)}
    tables["token_type"] = ("token_type", bert.type_vocab_size)
    for here, (there, size) in tables.items():
        yield Weight(f"bert/embeddings/{here}/embedding", (f"embeddings.{there}_embeddings.weight",), (size, d))
    yield from _norm("bert/embeddings/norm", "embeddings.LayerNorm", d)
    for i in range(bert.num_layers):
        here, there = f"bert/layers/{i}", f"encoder.layer.{i}"
        attention = f"{there}.attention"
        yield from _dense(f"{here}/attention/qkv", [f"{attention}.self.{x}" for x in ("query", "key", "value")], d, a)
        yield from _dense(f"{here}/attention/out", [f"{attention}.output.dense"], a, d)
        yield from _norm(f"{here}/attention/norm", f"{attention}.output.LayerNorm", d)
        yield from _dense(f"{here}/mlp/up", [f"{there}.intermediate.dense"], d, inner)
        yield from _dense(f"{here}/mlp/down", [f"{there}.output.dense"], inner, d)
        yield from _norm(f"{here}/mlp/norm", f"{there}.output.LayerNorm", d)
    if bert.has_pooler:
        yield from _dense("bert/pooler", ["pooler.dense"], d, d, optional=True)
    if num_tasks:
        yield from _dense("head/dense", ["classifier"], d, num_tasks, optional=True)


def _dense(path: str, modules: list[str], size_in: int, size_out: int, optional: bool = False) -> Iterator[Weight]:
    weight, bias = (tuple(f"{module}.{kind}" for module in modules) for kind in ("weight", "bias"))
    yield Weight(f"{path}/kernel", weight, (size_out, size_in), optional)
    yield Weight(f"{path}/bias", bias, (size_out,), optional)


def _norm(path: str, module: str, size: int) -> Iterator[Weight]:
    yield Weight(f"{path}/scale", (f"{module}.weight",), (size,))
    yield Weight(f"{path}/bias", (f"{module}.bias",), (size,))


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names in a checkpoint by the names used here: without the encoder's prefix, with the present names of LayerNorm's
    weights, and with RoBERTa's two-layer classifier as pooler and head."""
    renames = (
        (r"^(bert|roberta)\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
        (r"^classifier\.dense\.", "pooler.dense."),
        (r"^classifier\.out_proj\.", "classifier."),
    )
    plain_names: dict[str, str] = {}
    for name in sorted(names):  # in this order a RoBERTa classifier goes before a pooler left over from pre-training
        plain = name
        for pattern, replacement in renames:
            plain = re.sub(pattern, replacement, plain)
        plain_names.setdefault(plain, name)
    return plain_names
