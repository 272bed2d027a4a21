"""Draws the README's picture of the four interactions from the visibility that the encoder uses.

python .github/interactions.py .github/interactions.png
"""

import sys

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap

from srsjax.model.attention import Visibility

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONTEXT, CANDIDATES = 4, (3, 2)
"""Tokens of the query and of the candidates A and B."""
COLOURS = ("#4477aa", "#ee8866", "#44aa88")
"""Query, A, B."""


def shared_row() -> tuple[list[int], list[int]]:
    """`segment` and `candidate` of a row that holds the query once; the last slot is padding."""
    owners = [n for n, size in enumerate(CANDIDATES, 1) for _ in range(size)]
    return [1] * (CONTEXT + len(owners)) + [0], [0] * CONTEXT + owners + [0]


def pairs_row() -> tuple[list[int], list[int]]:
    """The same for a row with a copy of the query for each candidate."""
    segment, candidate = [], []
    for n, size in enumerate(CANDIDATES, 1):
        segment += [n] * (CONTEXT + size)
        candidate += [0] * CONTEXT + [n] * size
    return [*segment, 0], [*candidate, 0]


def panel(axes, title: str, row: tuple[list[int], list[int]], kind: str, note: str) -> None:
    """One square: a line for each query token, a column for each key token."""
    segment, candidate = (np.array([ids], np.int32) for ids in row)
    real = segment[0] > 0
    mask = np.asarray(getattr(Visibility, kind)(segment, candidate).mask())[0] & real[:, None] & real
    cells = np.where(mask, candidate[0][:, None] + 1, 0)
    colours = ListedColormap(["#f0f0f0", *COLOURS])
    axes.pcolormesh(cells, cmap=colours, vmin=0, vmax=len(COLOURS), edgecolors="white", linewidth=1)
    axes.set(aspect="equal", xlim=(0, len(real)), ylim=(len(real), 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for i in np.flatnonzero(real):
        owner = candidate[0][i]
        style = {"ha": "center", "va": "center", "color": COLOURS[owner], "fontweight": "bold", "fontsize": 8}
        axes.text(i + 0.5, -0.4, "qAB"[owner], **style)
        axes.text(-0.5, i + 0.5, "qAB"[owner], **style)
    axes.set_title(title, fontweight="bold", fontsize=11, pad=14)
    axes.set_xlabel(note, fontsize=9)


def main(path: str) -> None:
    """Writes the picture."""
    widths = [len(pairs_row()[0]), *[len(shared_row()[0])] * 3]
    figure, axes = plt.subplots(1, 4, figsize=(11.2, 3.5), width_ratios=widths, facecolor="white")
    panel(axes[0], "cross", pairs_row(), "cross", "a copy of the query for each candidate")
    panel(axes[1], "shared", shared_row(), "shared", "one query for all candidates")
    panel(axes[2], "split, lower layers", shared_row(), "towers", "upper layers as in shared")
    panel(axes[3], "towers", shared_row(), "towers", "in every layer")
    legend = (
        "One packed row: query q, candidates A and B, one padding slot. "
        "A line is a token; its coloured cells are the tokens that it attends to."
    )
    figure.text(0.5, 0.03, legend, ha="center", fontsize=9.5, color="#333333")
    figure.subplots_adjust(left=0.025, right=0.99, top=0.86, bottom=0.17, wspace=0.12)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main(sys.argv[1])
