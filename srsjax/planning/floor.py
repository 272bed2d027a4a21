"""The shortest time that a step can take on a chip, from what its program must compute, move and send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srsjax.hardware import Chip


@dataclass(frozen=True)
class Floor:
    """Seconds of a step on one device, each resource alone and at its maker's best."""

    arithmetic: float
    """Floating-point operations / peak."""
    memory: float
    """Bytes accessed / bandwidth of the device's memory. The bytes are an estimate from the program, not a bound:
    a fusion that reads a part of its operand may count all of it."""
    network: float
    """Bytes that a device must send / what all its links send."""

    @property
    def step(self) -> float:
        """The three may overlap wholly, so the longest of them is the floor."""
        return max(self.arithmetic, self.memory, self.network)

    @property
    def bound(self) -> str:
        """The resource that decides."""
        return max(("arithmetic", "memory", "network"), key=lambda name: getattr(self, name))


def floor(chip: Chip, flops: float, accessed: float, sent: float) -> Floor:
    """The floor of a device that computes `flops` operations, moves `accessed` bytes and sends `sent` bytes a step."""
    return Floor(flops / chip.flops, accessed / chip.bandwidth, sent / chip.network)


def weak_scaling(chip: Chip, one: Floor, gradient_bytes: float, sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """What more devices give with the same rows on each, on paper: (devices n, network seconds, efficiency).

    Data parallel: arithmetic and memory of a device stay; the gradients are all-reduced, for which a device of a ring
    sends 2 (n - 1) / n x `gradient_bytes`:

        network(n) = 2 (n - 1) / n x gradient_bytes / chip.network
        efficiency(n) = w / (w + network(n)),  w = max(arithmetic, memory)

    No communication is hidden behind arithmetic here, so this is the pessimistic end; hidden wholly, the efficiency is
    min(1, w / network(n)). The network is that of one slice with all links in use; an edge without wrap-around
    has fewer links.
    """
    work = max(one.arithmetic, one.memory)
    table = []
    for n in sizes:
        network = 2 * (n - 1) / n * gradient_bytes / chip.network
        table.append((n, network, work / (work + network)))
    return table
