"""Peak rates of accelerators as published by their vendors (for MFU and the plan), and this machine's CPU."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device of a mesh."""

    name: str
    flops: float
    """Dense bfloat16 matmuls with float32 accumulation, floating-point operations per second."""
    memory: float
    """Bytes of its high-bandwidth memory."""
    bandwidth: float
    """Bytes per second to and from that memory."""
    network: float
    """Bytes per second that one chip sends to its neighbours in the slice (ICI) or node (NVLink), over all links in one
    direction."""


# Google's pages of each TPU generation ("System architecture" at cloud.google.com/tpu/docs) and NVIDIA's data sheets,
# without sparsity. Vendors state links in both directions together, 400, 1200 and 800 GB/s per chip for v5e, v5p and
# v6e; half of that is sent. Google's page of v4 has no such figure; its six links are assumed to be those of v5e.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 300e9),
    "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 400e9),
    "a100-40gb": Chip("NVIDIA A100 40 GB", 312e12, 40 * GIB, 1555e9, 300e9),
    "a100": Chip("NVIDIA A100 80 GB", 312e12, 80 * GIB, 2039e9, 300e9),
    "h100": Chip("NVIDIA H100 SXM", 989e12, 80e9, 3350e9, 450e9),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 450e9),
    "b200": Chip("NVIDIA B200", 2250e12, 180e9, 7700e9, 900e9),
}

# Patterns of JAX's device kinds; the first match counts.
KINDS = (
    (r"TPU v4$", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5p?$", "v5p"),
    (r"TPU v6 ?(lite|e)", "v6e"),
    (r"A100.*40GB", "a100-40gb"),
    (r"A100", "a100"),
    (r"H100", "h100"),
    (r"H200", "h200"),
    (r"B200", "b200"),
)


def chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None for one that is not in the table, such as a CPU."""
    return next((CHIPS[key] for pattern, key in KINDS if re.search(pattern, device_kind)), None)


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilisation (MFU): the share of the peak rate that the model's own arithmetic reaches.

    The operations that the model needs, however it is computed, over those that the devices could have done in that
    time: recomputation to save memory (`model.remat`), padding, and everything but the model's matmuls count as time,
    not as work. Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", appendix B; unlike
    there, attention counts the visible pairs of tokens, not all of a row (`srsjax.model.flops`).

    Args:
      flops: floating-point operations of the model, forward and backward, on all devices.
      seconds: wall time.
      peak: floating-point operations per second of all devices together (`Chip.flops` times their number).
    """
    return flops / (seconds * peak)


def usable_cores() -> int:
    """CPU cores this process may run on, as XLA counts them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


VECTOR_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""Flags of a CPU that matmuls depend on, by Linux's names; the last three are Arm's."""
BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""Those of them that multiply bfloat16; without one XLA converts to float32 and multiplies that."""


@dataclass(frozen=True)
class Cpu:
    """What Linux says of the CPU."""

    name: str
    units: tuple[str, ...] | None
    """Those of `VECTOR_UNITS` that it has; None if unknown (not Linux)."""

    @property
    def has_bfloat16(self) -> bool | None:
        """Whether it multiplies bfloat16; None if unknown."""
        return None if self.units is None else any(unit in BFLOAT16_UNITS for unit in self.units)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.units)})" if self.units else self.name


def cpu(file: Path = Path("/proc/cpuinfo")) -> Cpu:
    """This machine's CPU, of the first core in the file; "CPU" where that has no name."""
    try:
        text = file.read_text()
    except OSError:
        return Cpu("CPU", None)
    fields = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", text.partition("\n\n")[0], re.M))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    units = tuple(unit for unit in VECTOR_UNITS if unit in flags) if flags else None
    return Cpu(fields.get("model name", "CPU").strip(), units)
