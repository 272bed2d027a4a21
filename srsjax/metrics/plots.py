"""One picture of a model: its ROC curve and its calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from srsjax.files import atomic_file
from srsjax.metrics.auc import auc, roc_curve
from srsjax.metrics.calibration import calibration_bins, ece


def save_curves(
    path: str | Path,
    probabilities: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    uncalibrated: np.ndarray | None = None,
) -> None:
    """Writes a PNG with the ROC curve and the calibration curve, under a temporary name first.

    Args:
        path: file to write.
        probabilities: [M] in [0, 1].
        labels: [M] in [0, 1], of both classes.
        weights: [M] >= 0; 0 leaves a candidate out.
        uncalibrated: [M] probabilities before calibration, whose curve is drawn beside; None where there is none.
    """
    from matplotlib.figure import Figure  # half a second to import, and few commands draw

    area, error = auc(probabilities, labels, weights), ece(probabilities, labels, weights)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    roc, calibration = figure.subplots(1, 2)
    false, true = roc_curve(probabilities, labels, weights)
    thin = np.unique(np.linspace(0, len(false) - 1, 2000).astype(np.int64))  # as fine as the picture
    roc.plot(false[thin], true[thin])
    roc.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    roc.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        title=f"AUC {area:.4f}",
    )
    title, top = f"ECE {error:.4f}", 0.0
    drawn = {"calibrated": probabilities}
    if uncalibrated is not None:
        drawn["before"] = uncalibrated
        title += f", before calibration {ece(uncalibrated, labels, weights):.4f}"
    for (name, each), marker in zip(drawn.items(), "ox", strict=False):
        bins = calibration_bins(each, labels, weights)
        top = max(top, 1.05 * bins.predicted.max(), 1.05 * bins.observed.max())
        calibration.plot(bins.predicted, bins.observed, marker=marker, label=name)
    calibration.plot([0, top], [0, top], color="grey", linewidth=0.8)
    calibration.set(xlabel="mean predicted probability", ylabel="mean label", title=title)
    if uncalibrated is not None:
        calibration.legend()
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
