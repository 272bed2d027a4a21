"""A trained model as folders that transformers and sentence-transformers load.

`form_of` says which: a sequence classifier, an encoder with its head beside it, or two towers.

A classifier's head is saved as transformers keeps it: a BERT's as `BertForSequenceClassification` has it
(`classifier`), a RoBERTa's as `RobertaForSequenceClassification` (`classifier.dense` is the pooler,
`classifier.out_proj` the head). With the pooled read-out these classes give the same logits. A head over another
read-out has no such class: it is saved under `classifier` too, and the architecture named is the bare encoder.

Towers are saved as two encoders with the same weights: their budgets differ, and tools that know no routes take one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, processors

from srsjax.data.batches.layout import Layout
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.errors import InputError
from srsjax.files import atomic_file, write_json, write_text
from srsjax.hub import read_json
from srsjax.model.bert import BertConfig
from srsjax.model.hf import stored_weights
from srsjax.model.spec import ModelSpec, Outputs, label_names

Form = Literal["classifier", "encoder", "towers", "parts"]

PROBLEMS = {"multiclass": "single_label_classification", "regression": "regression"}
"""What transformers calls a single task of these kinds; its pipelines then take the softmax, or the number itself."""
ACTIVATIONS = {
    "multi_label_classification": "torch.nn.modules.activation.Sigmoid",
    "regression": "torch.nn.modules.linear.Identity",
}
"""From logits to scores, by what transformers calls the problem, where sentence-transformers must be told."""
POOLING = {"pooled": "cls", "first": "cls", "mean": "mean"}
"""Pooling of sentence-transformers by `model.readout`; after `pooled` comes BERT's dense layer with tanh."""


def form_of(spec: ModelSpec) -> Form:
    """What a model is exported as.

    `classifier`: transformers' sequence classifier, with the same logits. `encoder`: transformers' encoder reads the
    pair, and the head is one matmul more. `towers`: two sentence encoders. `parts`: encoder and head of a model that
    only srsjax computes as it was trained: for its visibility, other features than text, experts, a bilinear product,
    or tasks that come after another.
    """
    bilinear = spec.interaction.reads_context and spec.product == "bilinear"
    if spec.features or spec.experts or bilinear or any(outputs.after for outputs in spec.outputs):
        return "parts"
    if spec.interaction.classifier:
        return "classifier" if spec.readout == "pooled" else "encoder"
    return "towers" if all(map(spec.interaction.alone, ("context", "candidate"))) else "parts"


def save_pairs(
    folder: Path, params: Mapping[str, np.ndarray], spec: ModelSpec, text: TextEncoder, most_tokens: int
) -> None:
    """Writes one folder with encoder, head and tokenizer: every form but `towers`.

    Args:
      folder: made if absent.
      params: as `ctr.init` names them; arrays of any kind that numpy takes.
      text: the run's tokenizer.
      most_tokens: of a pair by the budgets, special tokens included: the tokenizer's `model_max_length`.
    """
    save_weights(folder, params, spec.encoder, pairs=form_of(spec) == "classifier", outputs=spec.outputs)
    save_tokenizer(folder, text, most_tokens)


# ---------------------------------------------------------------------------------------------- transformers


def save_weights(
    folder: str | Path,
    params: Mapping[str, np.ndarray],
    bert: BertConfig,
    *,
    pairs: bool = True,
    outputs: Sequence[Outputs] = (),
) -> None:
    """Writes `model.safetensors` and `config.json` that transformers loads; float32, exact.

    Args:
      folder: made if absent; files of these names in it are replaced.
      params: as `ctr.init` names them; arrays of any kind that numpy takes. Without a head the encoder alone is saved.
      bert: their encoder.
      pairs: whether the head reads pairs as transformers' classifiers do (`cross`).
      outputs: the tasks, whose names label the logits; without them they are LABEL_0, LABEL_1, ...
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = params["head/dense/bias"].shape[0] if "head/dense/bias" in params else 0
    roberta = bert.position_offset > 0
    classifier = pairs and count > 0 and bert.has_pooler
    params, bert = with_empty_heads(params, bert)
    tensors = {}
    for weight in stored_weights(bert, count):
        for name, array in zip(weight.names, weight.to_stored(np.asarray(params[weight.path])), strict=True):
            tensors[_full_name(name, roberta, classifier)] = array
    save_tensors(folder / "model.safetensors", tensors)
    names = label_names(outputs) or [f"LABEL_{i}" for i in range(count)]
    raw = _config_json(bert, roberta, classifier) | _labels_json(names[:count], outputs)
    write_json(folder / "config.json", raw)


def with_empty_heads(params: Mapping[str, np.ndarray], bert: BertConfig) -> tuple[Mapping[str, np.ndarray], BertConfig]:
    """The same function with heads of width D / H, as transformers has them: those that were left out are there again,
    with weights of zero. Raises InputError where D is no multiple of the width of a head."""
    if bert.attention_width == bert.hidden_size:
        return params, replace(bert, head_size=0)
    if bert.hidden_size % bert.head_width:
        raise InputError(
            f"heads of width {bert.head_width}: transformers has none in an encoder of width {bert.hidden_size}, which "
            "is not a multiple of it"
        )
    made, empty = dict(params), bert.hidden_size - bert.attention_width
    for layer in range(bert.num_layers):
        here = f"bert/layers/{layer}/attention"
        for path, axis in ((f"{here}/qkv/kernel", 2), (f"{here}/qkv/bias", 1), (f"{here}/out/kernel", 0)):
            array = np.asarray(params[path])
            made[path] = np.pad(array, [(0, empty * (i == axis)) for i in range(array.ndim)])
    return made, replace(bert, num_heads=bert.hidden_size // bert.head_width, head_size=0)


def in_units(params: Mapping[str, np.ndarray], outputs: Sequence[Outputs]) -> dict[str, np.ndarray]:
    """Parameters with which the logit of a regression task is the number itself, in the units of its label."""
    scale = np.concatenate([np.full(each.count, each.deviation) for each in outputs])
    shift = np.concatenate([np.full(each.count, each.mean) for each in outputs])
    kernel, bias = (np.asarray(params[f"head/dense/{name}"], np.float64) for name in ("kernel", "bias"))
    made = {"head/dense/kernel": kernel * scale, "head/dense/bias": bias * scale + shift}
    return dict(params) | {path: array.astype(np.float32) for path, array in made.items()}


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file whole or not at all, float32, with the permissions of any new file."""
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    with atomic_file(file) as partial:
        save_file(arrays, partial, metadata={"format": "pt"})


def save_tokenizer(
    folder: Path, text: TextEncoder, most_tokens: int, around: tuple[Sequence[int], Sequence[int]] | None = None
) -> None:
    """Writes a tokenizer that transformers loads.

    Args:
      most_tokens: where transformers cuts a sequence if asked to (`model_max_length`).
      around: ids before and after a single text, all of token type 0; None keeps the template for pairs.
    """
    text.save(folder)
    settings = read_json(folder / "tokenizer_config.json") | {"model_max_length": most_tokens}
    if around is not None:
        tokenizer = Tokenizer.from_str(text.tokenizer.to_str())
        before, after = ([(str(tokenizer.id_to_token(token)), token) for token in ids] for ids in around)
        single = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        special = list(dict.fromkeys([*before, *after]))
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
        write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    write_json(folder / "tokenizer_config.json", settings)


def _full_name(name: str, roberta: bool, classifier: bool) -> str:
    """The name under which transformers' own class keeps a weight."""
    if roberta and classifier:
        name = re.sub(r"^classifier\.", "classifier.out_proj.", name)
        name = re.sub(r"^pooler\.dense\.", "classifier.dense.", name)
    if name.startswith("classifier."):
        return name
    return f"{'roberta' if roberta else 'bert'}.{name}"


def _config_json(bert: BertConfig, roberta: bool, classifier: bool) -> dict:
    family = "Roberta" if roberta else "Bert"
    return {
        "architectures": [f"{family}{'ForSequenceClassification' if classifier else 'Model'}"],
        "model_type": family.lower(),
        "vocab_size": bert.vocab_size,
        "hidden_size": bert.hidden_size,
        "num_hidden_layers": bert.num_layers,
        "num_attention_heads": bert.num_heads,
        "intermediate_size": bert.intermediate_size,
        "max_position_embeddings": bert.max_positions,
        "type_vocab_size": bert.type_vocab_size,
        "layer_norm_eps": bert.layer_norm_eps,
        "hidden_act": bert.activation,
        "hidden_dropout_prob": bert.hidden_dropout,
        "attention_probs_dropout_prob": bert.attention_dropout,
        "initializer_range": bert.initializer_range,
        "pad_token_id": bert.position_offset - 1 if roberta else 0,
    }


def _labels_json(names: Sequence[str], outputs: Sequence[Outputs]) -> dict:
    if not names:
        return {}
    made: dict = {"id2label": {str(i): name for i, name in enumerate(names)}}
    made["label2id"] = {name: i for i, name in enumerate(names)}
    if len(outputs) == 1 and outputs[0].kind in PROBLEMS:
        made["problem_type"] = PROBLEMS[outputs[0].kind]
    elif outputs and not any(each.kind in PROBLEMS for each in outputs):
        # transformers' pipelines then score each label by its logistic, as we do, and not all by one softmax.
        made["problem_type"] = "multi_label_classification"
    # sentence-transformers' CrossEncoder would take the logistic of a single number, and of several labels nothing.
    if made.get("problem_type") in ACTIVATIONS:
        made["sentence_transformers"] = {"activation_fn": ACTIVATIONS[made["problem_type"]]}
    return made


# ---------------------------------------------------------------------------------------------- sentence-transformers


def save_towers(
    folder: Path,
    params: Mapping[str, np.ndarray],
    spec: ModelSpec,
    text: TextEncoder,
    layout: Layout,
    most_tokens: tuple[int, int],
) -> None:
    """Writes a sentence-transformers folder of two encoders, and the head that joins their vectors.

    The folders `context` and `candidate` are models of their own; the whole is one with a route to each (`encode_query`
    and `encode_document`). `head.safetensors` holds `scale` [D, K] and `bias` [K]:
    logit_k = sum_d scale_dk u_d v_d + bias_k.

    Args:
      folder: made if absent.
      params: as `ctr.init` names them.
      text: the run's tokenizer.
      layout: how texts become sequences.
      most_tokens: of a context and of a candidate by the budgets, special tokens included.
    """
    template, encoder = layout.template, {path: x for path, x in params.items() if path.startswith("bert/")}
    around = ((template.prefix, layout.between), (template.opening, template.suffix))
    for side, most, special in zip(("context", "candidate"), most_tokens, around, strict=True):
        _save_tower(folder / side, encoder, spec.encoder, spec.readout, most)
        save_tokenizer(folder / side, text, most, special)
    head = {"scale": params["head/dense/kernel"], "bias": params["head/dense/bias"]}
    save_tensors(folder / "head.safetensors", {name: np.asarray(array) for name, array in head.items()})
    _save_router(folder, {"query": "context", "document": "candidate"}, spec.readout)


def _save_tower(
    folder: Path, params: Mapping[str, np.ndarray], bert: BertConfig, readout: str, most_tokens: int
) -> None:
    """One encoder as a model of sentence-transformers, without its tokenizer."""
    save_weights(folder, params, bert)
    settings: dict = {"max_seq_length": most_tokens, "do_lower_case": False}
    if not bert.has_pooler:  # else transformers makes one and warns that it is not trained
        settings["model_args"] = {"add_pooling_layer": False}
    write_json(folder / "sentence_bert_config.json", settings)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    chosen = {f"pooling_mode_{name}": POOLING[readout] == mode for mode, name in modes.items()}
    for path, name in _modules(readout):
        (folder / path).mkdir(exist_ok=True)
        if name == "Pooling":
            write_json(folder / path / "config.json", {"word_embedding_dimension": bert.hidden_size, **chosen})
        if name == "Dense":
            _save_dense(folder / path, params, bert.hidden_size)
        if name == "Normalize":
            write_json(folder / path / "config.json", {})
    _save_modules(folder, [("", "Transformer"), *_modules(readout)])


def _modules(readout: str) -> list[tuple[str, str]]:
    """Folder and class of each module behind the encoder."""
    names = ["Pooling", *["Dense"] * (readout == "pooled"), "Normalize"]
    return [(f"{i}_{name}", name) for i, name in enumerate(names, 1)]


def _save_dense(folder: Path, params: Mapping[str, np.ndarray], size: int) -> None:
    """BERT's pooler as a module: the same dense layer with tanh."""
    settings = {"in_features": size, "out_features": size, "bias": True}
    write_json(folder / "config.json", settings | {"activation_function": "torch.nn.modules.activation.Tanh"})
    kernel, bias = (np.asarray(params[f"bert/pooler/{name}"]) for name in ("kernel", "bias"))
    save_tensors(folder / "model.safetensors", {"linear.weight": kernel.T, "linear.bias": bias})


def _save_modules(folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """What sentence-transformers reads first: the modules in order, and settings of the whole."""
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    # Unit vectors: the cosine is the dot product, which is what the candidate index of a retrieval system computes.
    settings: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "dot"}
    write_json(folder / "config_sentence_transformers.json", settings)


def _save_router(folder: Path, routes: Mapping[str, str], readout: str) -> None:
    """One model with a route to each tower; without a task it refuses, for there is no default side."""
    modules = [("", "Transformer"), *_modules(readout)]
    of = {route: [(f"{side}/{path}".rstrip("/"), name) for path, name in modules] for route, side in routes.items()}
    types = {path: f"sentence_transformers.models.{name}" for listed in of.values() for path, name in listed}
    structure = {route: [path for path, _ in listed] for route, listed in of.items()}
    parameters = {"default_route": None, "allow_empty_key": False}
    write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    _save_modules(folder, [("", "Router")])
