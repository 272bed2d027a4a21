"""Scores new rows: `python -m srsjax.score --run runs/ctr --input 'new/*.parquet' --output scores/`.

Writes one row a candidate in input order, as Parquet files: `row` (its number in the input, from 0), every column of
the input that is no text and no vector, and `score`, the probability of the first task (`score_<task>` for further
tasks). `--data.keys` names the columns instead. Catalogues are read where the run's config has them; give other files
with `--data.catalogues.0.files`. An item that no catalogue has is read from the input's own columns where it has those
that the catalogue gives; else its features are missing, and the number of such candidates is printed.

The input is scored in parts, each of which becomes a file that is final once it is there. Killed or stopped (SIGTERM:
exit code 75), the same command makes what is missing, and the files are those of a run that was not interrupted. With
`_SUCCESS` the folder is complete. One command at a time writes to it.

Several processes (`srsjax.distributed`) divide the parts between them. Where the mesh divides the model over more
devices than a process has, all read the input and divide its batches, and the first one writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax

from srsjax import cli, distributed
from srsjax.bounds import AtLeast0
from srsjax.compilation import enable_cache
from srsjax.config import Mesh, Table, TrainConfig, columns
from srsjax.console import main_console, say
from srsjax.cpu import keep_freed_memory
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.store.manifest import describe_table, describe_vectors
from srsjax.errors import InputError
from srsjax.inference.input_parts import InputParts, Part, Piece
from srsjax.inference.score_folder import ScoreFolder
from srsjax.inference.score_parts import NonFiniteScore, Totals, Watch, as_json, check_names, merged, score_parts
from srsjax.inference.score_progress import ScoreProgress
from srsjax.inference.scorer import Scorer, scoring_mesh
from srsjax.locks import exclusive
from srsjax.runs.description import describe_run
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Quantize
from srsjax.stopping import STOPPED, Stopped, StopSignal

FIELDS = (
    r"data\.catalogues\.\d+\.(files|format|encoding)",
    r"data\.log\.(format|encoding)",
    r"data\.(keys|on_bad_row)",
    r"evaluate\.negatives_rate",
    r"batch\.eval_rows",
    r"mesh\..*",
    r"model\.(dtype|attention)",
)
"""Fields of the run's config that scoring reads."""

ENDED = "score ended"
"""What processes tell each other about (`distributed.tell`)."""
FORMAT = 1
"""Incremented whenever the same input, run and settings would give other files."""
PIECE = 2
"""Chunks of `prepare` that are scored at once: the last batch of each piece is padded, so that small ones cost more."""
PART_ROWS, EXPLODED_PART_ROWS = 65_536, 8_192
"""Log rows of a part: what a kill costs at most, and what a file of scores holds. An exploded log row has several
candidates."""


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    input: str | tuple[str, ...]
    """Paths or globs of the rows to score: the columns of the training log, labels not needed."""
    output: str = "scores"
    """Folder for the files of scores. It holds nothing else; scores of the same run, input and settings are
    completed."""
    overwrite: bool = False
    """Replace other scores that the folder holds, once the new ones are complete."""
    part_rows: AtLeast0 = 0
    """Log rows of a part, which is a file of scores; 0 is 65,536, or 8,192 where a row holds lists of candidates."""
    unknown: Literal["missing", "error"] = "missing"
    """What becomes of a key that neither a catalogue nor the input's own columns describe: its features are missing,
    or scoring stops."""
    raw: bool = False
    """Write the scores of the model alone, without calibration and `evaluate.negatives_rate`, and its logits beside
    them: `logit` (`logit_<task>` for further tasks; of classes one each)."""
    quantize: Quantize = "none"
    """`int8` computes with 8-bit weights, all that may be (`srsjax.compress` chooses them)."""
    store_items: bool = True
    """Compute the lower layers of a `split` model once for each item of the catalogue, and keep the states in memory
    while scoring; the scores are the same."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_run(Arguments, argv, "score", __doc__, FIELDS)
    distributed.initialize()
    enable_cache()
    keep_freed_memory()
    run, table = RunFolder(arguments.run), replace(config.data.log, files=arguments.input)
    with contextlib.ExitStack() as held:
        distributed.on_first(lambda: held.enter_context(exclusive(arguments.output, say)))
        folder = ScoreFolder(arguments.output, distributed.on_first(lambda: describe(run, config, table, arguments)))
        if distributed.on_first(lambda: folder.open(arguments.overwrite)):
            rows = distributed.on_first(folder.summary)["rows"]
            say(f"{folder.target}: these {rows:,} rows are scored already; to score them again, delete it")
            return 0
        folder.path = Path(distributed.on_first(lambda: str(folder.path)))
        distributed.wait_until_seen(folder.path / "_manifest.json")
        try:
            rows, seconds = score(run, config, table, folder, arguments)
        except Stopped:
            say(f"stopped: {folder.count:,} parts are complete; run the same command to go on")
            return STOPPED
        except NonFiniteScore as error:
            cli.complain(str(error))
            return 1
        finally:
            if distributed.is_first():
                folder.discard_if_empty()
    say(f"{rows:,} rows scored in {seconds:.1f} s ({rows / seconds:,.0f} rows/s): {folder.target}")
    return 0


def describe(run: RunFolder, config: TrainConfig, table: Table, arguments: Arguments) -> dict[str, Any]:
    """What scores are made from. Raises InputError for a run that is not finished and for files that are missing."""
    mesh = scoring_mesh(config, run.config())
    return {
        "format": FORMAT,
        "run": describe_run(run),
        "input": describe_table(table),
        "catalogues": {catalogue.name: describe_table(catalogue) for catalogue in config.data.catalogues},
        "settings": {
            "keys": list(config.data.keys),
            "on_bad_row": config.data.on_bad_row,
            "unknown": arguments.unknown,
            "raw": arguments.raw,
            "negatives_rate": config.evaluate.negatives_rate,
            "quantize": arguments.quantize,
            "part_rows": part_rows(config, arguments),
            "eval_rows": config.batch.eval_rows,
            "dtype": config.model.dtype,
            "attention": config.model.attention,
            "mesh": asdict(mesh),
            "store_items": arguments.store_items,
        },
    } | describe_vectors(config)


def score(
    run: RunFolder, config: TrainConfig, table: Table, folder: ScoreFolder, arguments: Arguments
) -> tuple[int, float]:
    """Makes the parts that are missing and completes the folder; returns the rows scored now, and the seconds it took.

    Raises on all processes the InputError, NonFiniteScore or Stopped of any.
    """
    devices = own_devices(scoring_mesh(config, run.config()))
    alone = devices is not None or distributed.process_count() == 1
    scorer = load(run, config, table, arguments, devices)
    cleaner = scorer.encoder.scoring_cleaner(table, on_bad_row=config.data.on_bad_row)
    read, explodes = cleaner.stored_columns(table) or [], bool(config.data.explode)
    parts = InputParts(table, read, part_rows(config, arguments), PIECE * cleaner.batch_rows, explodes)
    check_names(scorer, cleaner, ", ".join(columns(arguments.input)), arguments.raw)

    before = distributed.on_first(lambda: [asdict(part) for part in folder.made()])
    made = {each["number"]: Part(**each) for each in before}
    if made:
        of = f" of {parts.count:,}" if parts.count else ""
        say(f"{folder.path}: {len(made):,}{of} parts are complete; going on")
    share = (distributed.process_index(), distributed.process_count()) if alone else (0, 1)
    wanted = parts.share(made, *share)
    writes = alone or distributed.is_first()
    started = time.monotonic()
    with StopSignal() as stop, ScoreProgress(main_console(), parts.rows, scorer.session.spec.reads_text) as progress:
        watch = Watching(stop, progress, alone)
        write = folder.write if writes else lambda *_: None
        own = together(lambda: score_parts(scorer, cleaner, parts, wanted, made, write, watch, arguments.raw))
    now = merged(own if alone else own[:1])
    everything = merged([as_json(Totals.of(part)) for part in made.values()] + [as_json(now)])
    distributed.on_first(lambda: folder.finish(as_json(everything)))
    tell(everything, progress)
    return now.rows, time.monotonic() - started


def load(
    run: RunFolder, config: TrainConfig, table: Table, arguments: Arguments, devices: list[jax.Device] | None
) -> Scorer:
    """The scorer of a run, with the items that the input has beyond the catalogues, and their states where stored."""
    scorer = Scorer.load(
        run.path,
        config=config,
        unknown=arguments.unknown,
        devices=devices,
        quantize=arguments.quantize,
        raw=arguments.raw,
    )
    scorer.encoder = scorer.encoder.with_new_rows(table)
    if arguments.store_items and scorer.can_store_items:
        stored = scorer.store_items()
        size = stored.states.nbytes / 2**20
        count = len(stored.offsets) - 1 - (arguments.unknown == "missing")  # one row is of no item
        say(f"{count:,} items stored, {size:,.0f} MiB")
    return scorer


def part_rows(config: TrainConfig, arguments: Arguments) -> int:
    """Log rows of a part."""
    return arguments.part_rows or (EXPLODED_PART_ROWS if config.data.explode else PART_ROWS)


def own_devices(mesh: Mesh) -> list[jax.Device] | None:
    """The devices of this process, where each process can hold the whole model: of several processes each then scores
    parts of its own. None where the mesh goes over all devices."""
    divided = mesh.fsdp * mesh.tensor
    if distributed.process_count() == 1 or mesh.data != -1 or divided < 0 or jax.local_device_count() % divided:
        return None
    return jax.local_devices()


class Watching(Watch):
    """Shows progress, and ends scoring where a signal or another process asks for it."""

    def __init__(self, stop: StopSignal, progress: ScoreProgress, alone: bool):
        """`alone`: this process waits for no other while it scores, so that it may stop at any batch."""
        self.stop, self.progress, self.alone = stop, progress, alone

    def read(self, piece: Piece) -> None:
        """See `Watch`. Processes that score together stop at the same piece."""
        if self.alone:
            self._obey(self.stop.asked or bool(distributed.told(ENDED)))
        else:
            self._obey(any(distributed.gather(self.stop.asked)))
        self.progress.read(piece.rows, not piece.wanted)

    def assembled(self, batch: PackedBatch) -> None:
        """See `Watch`."""
        self.progress.assembled(batch)

    def scored(self, pairs: int) -> None:
        """See `Watch`."""
        self.progress.scored(pairs)
        if self.alone:
            self._obey(self.stop.asked)

    def _obey(self, asked: bool) -> None:
        if asked:
            raise Stopped("asked by a signal, or because another process ended")


def together(work: Callable[[], Totals]) -> list[dict]:
    """Does each process's work; returns the totals of all, as JSON, once all are done.

    Where one fails or is stopped, the others stop at their next piece, and all raise what the first of them raised.
    """
    own: dict[str, Any]
    try:
        own = {"totals": as_json(work())}
    except (InputError, NonFiniteScore, Stopped) as error:
        own = {"ended": type(error).__name__, "said": str(error)}
        distributed.tell(ENDED, own)
    found = distributed.gather(own)
    for kind in (InputError, NonFiniteScore, Stopped):
        for each in found:
            if each.get("ended") == kind.__name__:
                raise kind(each["said"])
    return [each["totals"] for each in found]


def tell(totals: Totals, progress: ScoreProgress) -> None:
    """Says what became of the rows."""
    for name, count in totals.unknown.items():
        if count:
            say(f"{count:,} candidates without a row in catalogue {name}: their features are missing")
    if totals.set_aside:
        say(f"{totals.set_aside:,} bad rows set aside in _bad_rows-*.jsonl: they have no score")
    if progress.pairs:
        several = " by this process" if distributed.process_count() > 1 else ""
        say(f"{progress.rates()}{several}")


if __name__ == "__main__":
    cli.run(main)
