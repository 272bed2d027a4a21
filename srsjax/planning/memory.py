"""Memory per device during a step."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import jax

BATCHES = 2
"""Batches on a device at once: the current one and the next, which is being transferred."""

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
REFUSALS = (
    (r"required for HLO temporaries \(([\d.]+)([KMGT])\)", False),
    (r"[Tt]otal hbm usage >= ([\d.]+)([KMGT])", True),
    (r"Used ([\d.]+)([KMGT]) of", True),
)
"""Patterns of compilers' out-of-memory messages, and whether the figure includes parameters, optimizer and batch."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    optimizer: float
    batch: float
    temporary: float
    """Activations, gradients and everything else a program needs while it runs, its code included."""
    counted: str = ""
    """Why `temporary` is not the compiler's figure; empty if it is."""

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
    """Temporary bytes of a program, and why they are not the compiler's figure; empty if they are.

    Some backends report 0, or leave out memory that their libraries allocate. `least` is a lower bound computed from
    shapes, used if the compiler reports less; `why` describes it.
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
    """Temporary bytes that a program would need, from the compiler's error message; `least` if it names fewer or none.

    `held`: what else the device holds.
    """
    for pattern, whole in REFUSALS:
        if found := re.search(pattern, said):
            wanted = float(found[1]) * UNITS[found[2]]
            return max(wanted - (held.total if whole else 0), least)
    return least
