"""Exports a run: `python -m srsjax.export --run runs/ctr --output exported/`.

Writes weights, tokenizer and a model card (`README.md`) with Python that gives the scores of the run. As a Hugging Face
folder `cross` with the pooled read-out becomes a `...ForSequenceClassification` model of transformers; `towers` become
a sentence-transformers model with a route to each side. Neither knows the other interactions: the folder then holds the
bare encoder and the head, and the card says how to score.

`--format stablehlo` takes every model: the folder then holds its program (`jax.export`), for CPU, CUDA and TPU, and the
card's Python needs jax, flatbuffers (JAX reads programs with it), numpy, safetensors and tokenizers alone.

`--format onnx` (extra `[onnx]`) is the Hugging Face folder of a classifier with `model.onnx` beside its weights,
compared with them by onnxruntime: inputs `input_ids`, `attention_mask`, `token_type_ids` as the tokenizer gives them,
output `logits`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from srsjax import cli
from srsjax.config import Mesh, TrainConfig
from srsjax.console import say
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.errors import InputError
from srsjax.files import atomic_folder
from srsjax.jax_version import check_jax
from srsjax.model import hf_card, hf_export
from srsjax.model.int8 import Quantized
from srsjax.portable import folder as portable
from srsjax.portable import onnx
from srsjax.reporting.card import Facts, about_run, measured
from srsjax.runs.calibration import Calibration
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Quantize, Session, load_run


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    output: str = "exported"
    """Folder to write; it must not exist."""
    format: Literal["huggingface", "stablehlo", "onnx"] = "huggingface"
    """A folder for transformers or sentence-transformers; the scores as a program that JAX alone runs; or that folder
    with a program for onnxruntime, of classifiers only."""
    quantize: Quantize = "none"
    """`int8` exports a program with 8-bit weights, all that may be (`srsjax.compress` chooses them)."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_run(Arguments, argv, "export", __doc__, ())
    check_jax()
    output = Path(arguments.output).absolute()
    if output.exists():
        raise InputError(f"{output}: exists already; choose another --output")
    if arguments.format == "stablehlo" and importlib.util.find_spec("flatbuffers") is None:
        raise InputError("--format stablehlo: needs flatbuffers; pip install 'srsjax[stablehlo]'")
    if arguments.format == "onnx":
        onnx.check_onnx()
    folder = RunFolder(arguments.run)
    session, params = load_run(folder, replace(config, mesh=Mesh()), quantize=arguments.quantize)
    if arguments.format != "stablehlo" and any(isinstance(value, Quantized) for value in params.values()):
        raise InputError(
            f"--format {arguments.format}: found 8-bit weights, which it does not hold; use --format stablehlo"
        )
    if arguments.format == "onnx" and (form := hf_export.form_of(session.spec)) != "classifier":
        raise InputError(
            f"--format onnx: found a model that is exported as {form}, expected a classifier (cross, pooled, text "
            "alone); use --format stablehlo"
        )
    if not session.spec.reads_text and arguments.format == "huggingface":
        raise InputError(f"{folder.path}: a model without text, which neither library has; use --format stablehlo")
    params = jax.tree.map(np.asarray, params)
    folded = Calibration.load(folder).folded(params, session.spec.outputs)
    if folded is None:
        say("note: the run's calibration fits in no linear head: the exported model gives uncalibrated logits")
    manifest = folder.read(folder.manifest_file)
    text, fitted = load_tokenizer(folder.tokenizer), Fitted(**manifest["fitted"])
    about = about_run(folder, config, session.spec, text, manifest)
    measured = measured_of(folder, config, manifest, session, arguments.quantize, folded is not None)
    params = params if folded is None else folded
    with atomic_folder(output) as partial:
        if arguments.format == "stablehlo":
            portable.save(partial, params, session.compute, about, fitted, measured)
        else:
            write(partial, params, about, measured)
        if arguments.format == "onnx":
            say(f"{onnx.FILE}: logits as those of transformers, to {onnx.save(partial):.1e}")
    say(f"exported: {output}")
    return 0


def measured_of(
    folder: RunFolder,
    config: TrainConfig,
    manifest: Mapping[str, Any],
    session: Session,
    quantize: Quantize,
    calibrated: bool,
) -> hf_card.Measured:
    """What the card says of the run; `calibrated`: whether the exported logits are."""
    notes = []
    if folder.compressed.exists():
        notes.append(
            "What follows was measured before the weights were compressed; `compression.json` of the run says "
            "what that changed."
        )
    if quantize == "int8":
        notes.append("What follows was measured before the weights were made 8-bit.")
    if not calibrated:
        notes.append("The logits are not calibrated: of the metrics below those before calibration are its own.")
    of = (manifest, folder.read(folder.report_file), Calibration.load(folder), session.parameters)
    return measured(Facts(folder, config, *of, notes))


def write(
    folder: Path,
    params: Mapping[str, np.ndarray],
    about: hf_card.Described,
    measured: hf_card.Measured = hf_card.Measured(),
) -> None:
    """Writes weights, tokenizer and card into `folder`, made if absent; `params` as `ctr.init` names them, `measured`
    of the run that they are of."""
    lengths, params = hf_card.lengths(about.schema, about.layout), hf_export.in_units(params, about.spec.outputs)
    if about.form == "towers":
        hf_export.save_towers(folder, params, about.spec, about.text, about.layout, lengths)
    else:
        hf_export.save_pairs(folder, params, about.spec, about.text, sum(lengths))
    hf_card.model_card(about, measured).save(folder / "README.md")


if __name__ == "__main__":
    cli.run(main)
