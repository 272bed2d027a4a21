"""Lower bound of a step's time on a chip, from the operations, memory traffic and network traffic of its program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from srsjax.hardware import Chip


@dataclass(frozen=True)
class Floor:
    """Seconds of a step on one device, for each resource alone at its peak rate."""

    arithmetic: float
    """Floating-point operations / peak."""
    memory: float
    """Bytes accessed / bandwidth of the device's memory. The bytes are an estimate from the program, not a bound:
    a fusion that reads a part of its operand may count all of it."""
    network: float
    """Bytes that a device must send / bandwidth of all its links."""

    @property
    def step(self) -> float:
        """The three may overlap completely, so the longest of them is the floor."""
        return max(self.arithmetic, self.memory, self.network)

    @property
    def bound(self) -> str:
        """The resource that limits the step."""
        return max(("arithmetic", "memory", "network"), key=lambda name: getattr(self, name))


def floor(chip: Chip, flops: float, accessed: float, sent: float) -> Floor:
    """The floor of a device that computes `flops` operations, moves `accessed` and sends `sent` bytes per step."""
    return Floor(flops / chip.flops, accessed / chip.bandwidth, sent / chip.network)


def weak_scaling(chip: Chip, one: Floor, gradient_bytes: float, sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """Predicted weak scaling, with the same rows per device: (devices n, network seconds, efficiency).

    Data parallel: arithmetic and memory per device are constant; the gradients are all-reduced, for which a device of a
    ring sends 2 (n - 1) / n x `gradient_bytes`:

        network(n) = 2 (n - 1) / n x gradient_bytes / chip.network
        efficiency(n) = w / (w + network(n)),  w = max(arithmetic, memory)

    No communication is hidden behind arithmetic here, so this is pessimistic; with all of it hidden, the efficiency is
    min(1, w / network(n)). The network is that of one slice with all links in use; an edge without wrap-around
    has fewer links.
    """
    work = max(one.arithmetic, one.memory)
    table = []
    for n in sizes:
        network = 2 * (n - 1) / n * gradient_bytes / chip.network
        table.append((n, network, work / (work + network)))
    return table
