"""Exports a run as a Hugging Face folder: `python -m srsjax.export --run runs/ctr --output exported/`.

Writes `config.json`, `model.safetensors` and the tokenizer, as transformers loads them. With `cross` and the pooled
read-out the folder is a `...ForSequenceClassification` model that gives the same logits. transformers knows no other
interaction: the folder is then the bare encoder, the head beside it under `classifier`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from srsjax import cli
from srsjax.config import Mesh
from srsjax.console import say
from srsjax.errors import InputError
from srsjax.files import atomic_folder
from srsjax.jax_version import check_jax
from srsjax.model import hf
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import load_run


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    output: str = "exported"
    """Folder to write; it must not exist."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_run(Arguments, argv, "export", __doc__, ())
    check_jax()
    output = Path(arguments.output).absolute()
    if output.exists():
        raise InputError(f"{output}: exists already; choose another --output")
    folder = RunFolder(arguments.run)
    session, params = load_run(folder, replace(config, mesh=Mesh()))
    with atomic_folder(output) as partial:
        shutil.copytree(folder.tokenizer, partial, dirs_exist_ok=True)
        hf.save_weights(partial, params, session.spec.encoder, pairs=session.spec.interaction.classifier)
    say(f"exported: {output}")
    return 0


if __name__ == "__main__":
    cli.run(main)
