"""Models of the hub by their commit, so that a run started again, or from its config.json, has the same weights."""

from __future__ import annotations

from dataclasses import replace

from srsjax.config import TrainConfig
from srsjax.data.store.tokenizer import SETTINGS_FILES, TOKENIZER_FILES
from srsjax.hub import model_folder, pinned, same_model
from srsjax.model import hf
from srsjax.runs.run_folder import RunFolder


def pin(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """A config whose hub names have the commits that a run which began in `folder` has; else those of now.

    Raises InputError where the hub has no such model or cannot be reached.
    """
    began = folder.config() if folder.config_file.exists() and not config.overwrite else None

    def of(asked: str, kept: str, files: tuple[str, ...], expected: str) -> str:
        if not asked or same_model(asked, kept):
            return kept if asked else ""
        return pinned(asked, model_folder(asked, files, expected))

    weights = of(config.model.pretrained, began.model.pretrained if began else "", hf.FILES, hf.EXPECTED)
    files = (*TOKENIZER_FILES, *SETTINGS_FILES)
    tokenizer = of(
        config.tokenizer.source, began.tokenizer.source if began else "", files, "tokenizer.json or vocab.txt"
    )
    return replace(
        config,
        model=replace(config.model, pretrained=weights),
        tokenizer=replace(config.tokenizer, source=tokenizer),
    )
