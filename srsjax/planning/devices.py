"""The devices of a plan: local ones, emulated CPU devices, or those of a TPU topology that may be absent."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from srsjax import hardware
from srsjax.errors import InputError


@dataclass(frozen=True)
class Target:
    """The devices that a program is compiled for."""

    devices: Sequence[jax.Device]
    here: bool
    """Whether these devices can run programs; those of a topology cannot."""
    chip: hardware.Chip | None
    """Peak rates of one device; None if it is not in the table."""
    memory: float | None
    """Bytes of memory per device; None if unknown."""

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.devices[0].platform

    @property
    def name(self) -> str:
        """`8 x TPU v5 lite`."""
        return f"{len(self.devices)} x {self.devices[0].device_kind}"


def find(topology: str, memory: float = 0.0) -> Target:
    """The devices that `--topology` names; call it before JAX initialises a backend.

    Args:
      topology: `local`, `cpu:N`, or a TPU slice as `v5e:2x4`, compiled for by `libtpu`.
      memory: bytes per device; above 0 it overrides the known value.

    Raises:
      InputError: no such topology, or libtpu is not installed.
    """
    if topology == "local":
        devices: Sequence[jax.Device] = jax.devices()
    elif found := re.fullmatch(r"cpu:([1-9]\d*)", topology):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(found[1]))
        devices = jax.devices()
    else:
        devices = _slice(topology)
    chip = device_chip(devices)
    known = memory or (chip.memory if chip else _reported(devices[0]))
    return Target(devices, topology == "local" or topology.startswith("cpu:"), chip, known)


def device_chip(devices: Sequence[jax.Device]) -> hardware.Chip | None:
    """Peak rates of one device: a part of a chip if JAX shows its cores as devices (v4 slices; by coordinates)."""
    chip = hardware.chip(devices[0].device_kind)
    places = {tuple(device.coords) for device in devices} if hasattr(devices[0], "coords") else set()
    cores = len(devices) // len(places) if places else 1
    if chip is None or cores < 2:
        return chip
    shares = {name: getattr(chip, name) / cores for name in ("flops", "memory", "bandwidth", "network")}
    return replace(chip, name=f"1/{cores} {chip.name}", **shares)


def _slice(topology: str) -> Sequence[jax.Device]:
    if not re.fullmatch(r"v\w+:\d+(x\d+)+", topology):
        raise InputError(f"--topology {topology}: expected local, cpu:N (cpu:8) or a TPU slice (v5e:2x4, v5p:2x2x1)")
    if not importlib.util.find_spec("libtpu"):
        raise InputError(
            f"--topology {topology}: the compiler for TPU is not installed; run pip install 'jax[tpu]' (no TPU needed)"
        )
    # This process runs on CPU and uses libtpu's compiler only: it neither looks for a TPU nor locks one.
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")  # no warnings about TPU hosts that it does not find
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology {topology}: {str(error).splitlines()[0]}") from error


def _reported(device: jax.Device) -> float | None:
    """The memory limit that a device reports in bytes; None for a CPU."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a topology's device
        return None
