"""What a finished training leaves besides its checkpoints: report, calibration, reference, pictures, page and card."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from srsjax.config import TrainConfig
from srsjax.console import say
from srsjax.data.batches.layout import BatchShape
from srsjax.data.store.arrays import Split, Store
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.files import write_json, write_text
from srsjax.metrics.plots import save_curves
from srsjax.objectives import predict
from srsjax.reporting.card import Facts, about_run, run_card
from srsjax.reporting.page import SplitPart, split_part, write_page
from srsjax.runs.assessment import Assessment, assess
from srsjax.runs.attribution import QUICK_POINTS, Explainer
from srsjax.runs.calibration import Calibration, fit_calibration
from srsjax.runs.reference import make_reference
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Session


@dataclass
class Final:
    """Gathers what is said of each split, with the best checkpoint, and writes it. The first process has one."""

    config: TrainConfig
    session: Session
    store: Store
    shape: BatchShape
    folder: RunFolder
    params: dict[str, Any]
    """Of the best checkpoint."""
    best_step: int
    result: dict[str, Any]
    """What `report.json` will hold."""
    calibration: Calibration = field(default_factory=Calibration)
    parts: list[SplitPart] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.calibration = Calibration(self.best_step)
        self.text = load_tokenizer(self.folder.tokenizer)
        for name in ("valid", "test"):
            self.result |= Assessment({}).of_split(name)

    def add(self, name: str, logits: np.ndarray) -> None:
        """A split with the logits [M, K] float32 of the model itself. `valid` comes first, on which the calibration is
        fitted: what is reported of `test` chose nothing."""
        config, outputs, store, split = self.config, self.session.spec.outputs, self.store, self.store.split(name)
        if name == "valid":
            self.calibration = fit_calibration(config, outputs, split, store.items, logits, self.best_step)
        of = (config, outputs, self.calibration, split, store.items, logits)
        vocabularies = store.manifest["fitted"]["vocabularies"]
        assessment = assess(*of, store.split("train"), partial(_say_of, name), vocabularies)
        self.result |= assessment.of_split(name)
        last = name == store.final_split
        self.parts.append(split_part(name, *of, assessment, self.text, vocabularies, self._explainer if last else None))
        reported = self.calibration.apply(config.schema, outputs, split, store.items, logits)
        if "auc" in assessment.model:
            self._draw_curves(name, split, reported, logits)
        if last:
            rows = (name, split, store.items, reported)
            made = make_reference(self.folder, config, outputs, self.text, store, *rows, self.best_step)
            made.save(self.folder)

    def write(self) -> None:
        """Writes all files, `report.json` last: it ends the run."""
        config, folder, manifest = self.config, self.folder, self.store.manifest
        self.calibration.save(folder)
        write_page(folder.page_file, folder, config, manifest, self.parts[::-1], self.best_step)
        facts = Facts(folder, config, manifest, self.result, self.calibration, self.session.parameters)
        about = about_run(folder, config, self.session.spec, self.text, manifest)
        write_text(folder.card_file, str(run_card(facts, about)))
        folder.bind((folder.calibration_file,), self.best_step)
        write_json(folder.report_file, self.result)

    @property
    def _explainer(self) -> Explainer | None:
        if self.session.mesh.is_multi_process:
            return None
        return Explainer(self.session, self.params, self.shape, self.text, QUICK_POINTS)

    def _draw_curves(self, name: str, split: Split, reported: np.ndarray, logits: np.ndarray) -> None:
        """The picture of the first task's probabilities, after calibration and before."""
        tasks, outputs = self.config.schema.tasks, self.session.spec.outputs
        after, before = (predict(tasks, outputs, each)[:, 0] for each in (reported, logits))
        changed = self.calibration.changes(tasks[0].name)
        of = (split.labels[:, 0], split.weights[:, 0], before if changed else None)
        save_curves(self.folder.path / f"{name}.png", after, *of)


def _say_of(split: str, line: str) -> None:
    say(f"{split} split: {line}")
