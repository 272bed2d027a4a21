"""What one device holds during a step."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import jax

BATCHES = 2
"""Batches on a device at once: the one that is computed and the next, which is on its way."""

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
REFUSALS = (
    (r"required for HLO temporaries \(([\d.]+)([KMGT])\)", False),
    (r"[Tt]otal hbm usage >= ([\d.]+)([KMGT])", True),
    (r"Used ([\d.]+)([KMGT]) of", True),
)
"""How compilers say what a program would need; whether that counts parameters, optimizer and batch too."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    optimizer: float
    batch: float
    temporary: float
    """Activations, gradients and whatever else a program needs while it runs, its own code included."""
    counted: str = ""
    """Why `temporary` is not the compiler's figure; empty where it is."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.optimizer + self.batch + self.temporary


def on_device(tree: Any) -> float:
    """Bytes on one device of a pytree of `jax.ShapeDtypeStruct` with shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
            if leaf.sharding is not None
        )
    )


def temporary(compiled: jax.stages.Compiled, least: float, why: str) -> tuple[float, str]:
    """Temporary bytes of a program, and why that is not what the compiler says; empty where it is.

    Some backends report 0, or leave out what their libraries take for themselves. `least` is what the program cannot do
    without, counted from shapes, and stands in where the compiler says less; `why` names it.
    """
    analysis = compiled.memory_analysis()
    said = 0.0
    if analysis is not None:
        kept = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
        said = float(analysis.temp_size_in_bytes + kept + analysis.generated_code_size_in_bytes)
    if said >= least:
        return said, ""
    return least, f"the compiler says {said / 2**20:,.1f} MiB, less than {why}: counted instead"


def refused_temporary(said: str, held: Memory, least: float) -> float:
    """Temporary bytes that a program would need, from the compiler's refusal; `least` where it names fewer or none.

    `held` is what the device holds besides.
    """
    for pattern, whole in REFUSALS:
        if found := re.search(pattern, said):
            wanted = float(found[1]) * UNITS[found[2]]
            return max(wanted - (held.total if whole else 0), least)
    return least
