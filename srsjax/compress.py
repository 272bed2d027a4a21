"""Makes a run smaller and faster to score: `python -m srsjax.compress --run runs/ctr --output runs/ctr-int8`.

With `--method int8` the encoder's weights and the tables of embeddings become 8-bit numbers, but for those groups that
change the logits of validation pairs too much (`--bound`). The output is a run folder that `score`, `evaluate`, `export
--format stablehlo`, `watch` and `Scorer.load` take as any other; it cannot be trained on.

With `--method prune` parts of the encoder are left out: `--layers 3` keeps three layers, `--heads 6` six attention
heads of each layer, those on which the loss of validation pairs depends most. The output is a run folder too, and its
scores are bad until it is trained for a while: `python -m srsjax.train ... --model.pretrained OUTPUT`.

What was gained and lost is printed and written to `compression.json`: size, speed, metrics, and whether candidates keep
their order. `srsjax.compare --cost` prints the same table of runs.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from srsjax import cli
from srsjax.bounds import AtLeast0, AtLeast1, Positive
from srsjax.compilation import enable_cache
from srsjax.config import Mesh
from srsjax.console import say
from srsjax.cpu import keep_freed_memory
from srsjax.data.store.arrays import Items, Split, Store
from srsjax.errors import InputError
from srsjax.files import atomic_folder, write_json
from srsjax.inference.cost import cost_rows, cost_table
from srsjax.inference.scorer import Scorer
from srsjax.model.int8 import flat
from srsjax.model.spec import ModelSpec
from srsjax.runs import quantization
from srsjax.runs.evaluation import run_store
from srsjax.runs.pruning import (
    Drop,
    check_keep,
    head_importance,
    kept_heads,
    kept_layers,
    pruned,
    pruned_spec,
    spec_without_heads,
    without_heads,
)
from srsjax.runs.reference import make_reference
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import for_scoring, open_session, with_params
from srsjax.runs.warm_start import read_spec


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    output: str
    """Folder to write; it must not exist."""
    method: Literal["int8", "prune"] = "int8"
    """`int8` makes weights 8-bit, `prune` leaves out layers or heads."""
    layers: AtLeast0 = 0
    """Layers that `prune` keeps; 0 keeps all."""
    heads: AtLeast0 = 0
    """Heads that `prune` keeps of each layer; 0 keeps all."""
    drop: Drop = "top"
    """Layers that `prune` leaves out: the top ones; every other one; or, one after the other, that without which the
    logits of the validation pairs change least."""
    bound: Positive = 0.05
    """Largest change of the logits by `int8`: its root mean square, in standard deviations of the logits."""
    pairs: AtLeast1 = 2000
    """Validation pairs that it is measured on, about so many."""
    split: str = "test"
    """Split of the run's data that the metrics are of."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    fields = (r"data\.(store|engine|workers|shop\.folder)", r"data\.log\..*", r"batch\.eval_rows", r"model\.dtype")
    config, arguments = cli.load_run(Arguments, argv, "compress", __doc__, fields)
    output, folder = Path(arguments.output).absolute(), RunFolder(arguments.run)
    if output.exists():
        raise InputError(f"{output}: exists already; choose another --output")
    if folder.compressed.exists():
        raise InputError(f"{folder.path}: compressed already; compress the run that it was made of")
    _check(arguments, read_spec(folder))
    enable_cache()
    keep_freed_memory()
    config = replace(config, mesh=Mesh(1))
    store = run_store(folder, config)
    scorer = Scorer.load(folder.path, config=config)
    sample, split = _sample(store.split("valid"), arguments.pairs), store.split(arguments.split)
    if not len(sample) or not len(split):
        raise InputError(f"{folder.path}: no rows in the valid or {arguments.split} split to compare scores on")
    exact = Scorer.load(folder.path, config=replace(config, model=replace(config.model, dtype="float32")))
    if arguments.method == "int8":
        smaller, weights, said = _in_8_bits(scorer, exact.params, sample, store.items, arguments.bound)
    else:
        smaller, weights, said = _pruned(scorer, exact, sample, store.items, arguments)
    variants = {"float32": exact, scorer.session.compute.dtype.name: scorer, arguments.method: smaller}
    table = cost_rows(variants, split, store.items)
    with atomic_folder(output) as partial:
        _write(partial, folder, smaller, weights, {"method": arguments.method, **said, "table": table})
        if arguments.method == "int8" and folder.reference_file.exists():
            _refer(RunFolder(partial), smaller, store)
    say(cost_table(table, f"{arguments.split} split", "weights"))
    say(f"compressed: {output}")
    if arguments.method == "prune":
        say(f"to train what is left: python -m srsjax.train ... --model.pretrained {shlex.quote(arguments.output)}")
    return 0


def _check(arguments: Arguments, spec: ModelSpec) -> None:
    """Raises InputError for layers and heads that cannot be kept, before anything is computed."""
    kept: dict[Literal["layers", "heads"], tuple[int, int]] = {
        "layers": (arguments.layers, spec.encoder.num_layers),
        "heads": (arguments.heads, spec.encoder.num_heads),
    }
    asked = {part: numbers for part, numbers in kept.items() if numbers[0]}
    if arguments.method != "prune":
        for part, (keep, _) in asked.items():
            raise InputError(f"--{part}: found {keep}, but --method {arguments.method} keeps all; use --method prune")
        return
    if not spec.reads_text:
        raise InputError("this model has no encoder: there are no layers or heads to leave out")
    if not asked:
        raise InputError("--method prune: found --layers 0 and --heads 0, expected how many of either to keep")
    for part, numbers in asked.items():
        check_keep(part, *numbers)


def _sample(split: Split, pairs: int) -> Split:
    """Impressions in random order, until they have so many candidates."""
    order = np.random.default_rng(0).permutation(len(split))
    counts = np.cumsum(np.diff(split.candidates)[order])
    return split.take(np.sort(order[: int(np.searchsorted(counts, pairs)) + 1]))


def _with_weights(scorer: Scorer, params: dict[str, Any]) -> Scorer:
    """The same scorer with other weights."""
    session, params = with_params(scorer.session, params)
    return Scorer(scorer.config, session, params, scorer.encoder, scorer.shape, scorer.calibration)


def _in_8_bits(
    scorer: Scorer, params: Mapping[str, Any], sample: Split, items: Items, bound: float
) -> tuple[Scorer, dict[str, Any], dict[str, Any]]:
    """The scorer with 8-bit weights, these weights, and which they are; `params` are float32."""
    names = quantization.groups(params)
    if not names:
        raise InputError("this model has neither an encoder nor tables of embeddings: there is nothing to compress")

    def logits(kept: tuple[str, ...]) -> np.ndarray:
        return _with_weights(scorer, quantization.quantized(params, kept)).raw_logits(sample, items)

    choice = quantization.choose(names, bound, logits, scorer.raw_logits(sample, items))
    for name, each in choice.errors.items():
        say(f"{name}: logits change by {each:.4f} of their deviation{', kept' if name in choice.kept else ''}")
    say(f"all in 8 bits: {choice.whole:.4f}; chosen: {choice.error:.4f} (bound {choice.bound:g})")
    smaller = _with_weights(scorer, quantization.quantized(params, choice.kept))
    return smaller, smaller.params, asdict(choice)


def _pruned(
    scorer: Scorer, exact: Scorer, sample: Split, items: Items, arguments: Arguments
) -> tuple[Scorer, dict[str, Any], dict[str, Any]]:
    """The scorer with fewer layers and heads, its float32 weights, and which those are. Its logits are not calibrated.
    `exact` is the scorer in float32."""
    spec, expected = scorer.session.spec, scorer.raw_logits(sample, items)

    def error(spec: ModelSpec, params: Mapping[str, Any]) -> float:
        return quantization.error(_of_spec(scorer, spec, params).raw_logits(sample, items), expected)

    said: dict[str, Any] = {}
    params: dict[str, Any] = dict(exact.params)
    if arguments.layers:

        def error_of(kept: tuple[int, ...]) -> float:
            return error(pruned_spec(spec, kept), pruned(params, kept))

        count = spec.encoder.num_layers
        kept = kept_layers(count, arguments.layers, arguments.drop, error_of)
        said |= {"layers": kept, "drop": arguments.drop}
        say(f"layers {' '.join(map(str, kept))} of {count} are kept")
        spec, params = pruned_spec(spec, kept), pruned(params, kept)
    if arguments.heads:
        whole = _of_spec(exact, spec, params)
        of = (whole.session, whole.config, whole.params, sample, items, whole.shape)
        heads = kept_heads(head_importance(*of), arguments.heads)
        said["heads"] = heads
        for layer, own in enumerate(heads):
            say(f"layer {layer}: heads {' '.join(map(str, own))} of {spec.encoder.num_heads} are kept")
        params = without_heads(params, heads, spec.encoder.head_width)
        spec = spec_without_heads(spec, arguments.heads)
    said["error"] = error(spec, params)
    say(f"logits change by {said['error']:.4f} of their deviation")
    return _of_spec(scorer, spec, params), params, said


def _of_spec(scorer: Scorer, spec: ModelSpec, params: Mapping[str, Any]) -> Scorer:
    """A scorer like this one of another model, without its calibration."""
    session = open_session(scorer.config, spec, training=False)
    return Scorer(scorer.config, session, for_scoring(session, params), scorer.encoder, scorer.shape)


def _write(folder: Path, run: RunFolder, scorer: Scorer, weights: Mapping[str, Any], said: dict[str, Any]) -> None:
    """Writes a run folder with these weights instead of checkpoints."""
    made = RunFolder(folder)
    for file in (run.config_file, run.manifest_file, run.report_file):
        shutil.copy(file, folder / file.name)
    write_json(made.model_file, scorer.session.spec.to_json())
    replace(scorer.calibration, step=run.best_step()).save(made)
    shutil.copytree(run.tokenizer, made.tokenizer)
    arrays = {name: np.ascontiguousarray(array) for name, array in flat(weights).items()}
    save_file(arrays, made.compressed)
    made.bind_all(run.best_step())
    write_json(folder / "compression.json", said)


def _refer(folder: RunFolder, scorer: Scorer, store: Store) -> None:
    """Writes what `srsjax.watch` compares new rows with: as the run had it, of the scores that are given now."""
    name = store.final_split
    rows = (name, store.split(name), store.items, scorer.logits(store.split(name), store.items))
    of = (scorer.config, scorer.session.spec.outputs, scorer.encoder.text, store)
    make_reference(folder, *of, *rows, folder.best_step()).save(folder)


if __name__ == "__main__":
    cli.run(main)
