"""Which compute type `model.dtype auto` means on the devices there are, and how a run keeps it.

GPU and TPU compute in bfloat16. A CPU without bfloat16 units computes in float32, without timing: XLA converts bfloat16
operands of a matmul to float32 there. On AVX2 a training step in bfloat16 took 1.12 times as long for a width of 384
and 0.96 times for 128, less than the margin below, and timings of a busy machine scatter by more than that: one in
seven said 0.69. A CPU that has the units is timed: they pay for wide encoders and may not for narrow ones.

`config.json` of the run folder keeps the choice beside the `auto` that was asked for. A resumed run continues in it
wherever it is resumed. Scoring uses it on the same kind of device, so that scores are those of the report, and chooses
anew on another: a run of a GPU need not be served in bfloat16 by a CPU that has no units for it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srsjax import distributed, hardware
from srsjax.config import Dtype, Model, TrainConfig
from srsjax.model.bert import BertConfig
from srsjax.model.compute import compute_dtype
from srsjax.model.dense import contract
from srsjax.runs.run_folder import RunFolder

FASTER = 1.2
"""How many times as fast bfloat16 must be on a CPU to be chosen: float32 is the more exact one, and timings scatter."""

NARROW = 2**15
"""Weights of a matmul below which float32 is taken without timing: dispatch takes longer than such a matmul."""

FLOPS = 2**32
"""Most floating-point operations of one call that is timed; some 40 ms on two cores."""

ROUNDS = 3
"""Calls of each type that are timed, in turn; the fastest counts."""


class Precision(NamedTuple):
    """The compute type of a run."""

    dtype: Dtype
    """`float32`, `bfloat16` or `float8`."""
    device: str
    """Kind of the devices that it was chosen on."""
    said: str
    """One line for a person: what was chosen and why."""

    def record(self, asked: Model) -> dict[str, str] | None:
        """What `RunFolder.create` keeps of a choice; None where `asked` left none."""
        return {"dtype": self.dtype, "device": self.device} if asked.dtype == "auto" else None

    def apply(self, config: TrainConfig) -> TrainConfig:
        """The config with this compute type."""
        return replace(config, model=replace(config.model, dtype=self.dtype))


def timed(width: int, inner: int, training: bool) -> tuple[float, float]:
    """Seconds of a feed-forward pair of matmuls in float32 and in bfloat16, with their gradients in training.

    Args:
      width: D.
      inner: F; x [1, L, D] is multiplied by [D, F] and by [F, D], with as many tokens L as `FLOPS` allows, at most 512.
    """
    tokens = max(1, min(512, FLOPS // (12 * width * inner)))
    kernels = jnp.ones((width, inner)), jnp.ones((inner, width))

    def call(dtype: str) -> Callable:
        def pair(up, down, x):
            hidden = contract("rli,io->rlo", x, up).astype(dtype)
            return contract("rli,io->rlo", hidden, down).sum()

        run = jax.jit(jax.grad(pair, (0, 1, 2)) if training else pair)
        return functools.partial(run, *kernels, jnp.ones((1, tokens, width), dtype))

    calls = [call("float32"), call("bfloat16")]
    for run in calls:
        jax.block_until_ready(run())
    taken: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for times, run in zip(taken, calls, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - started)
    return min(taken[0]), min(taken[1])


def choose_precision(
    model: Model,
    encoder: BertConfig,
    kept: Precision | None = None,
    *,
    training: bool = True,
    cpu: hardware.Cpu | None = None,
    timed: Callable[[int, int, bool], tuple[float, float]] = timed,
) -> Precision:
    """The compute type of `model.dtype` on the devices there are. All processes call it and get process 0's answer.

    Args:
      model: a dtype other than `auto` is what it says.
      encoder: sizes of the matmuls.
      kept: what `auto` is for a run that has chosen already (`kept_precision`).
      training: whether gradients are computed too.
      cpu: instead of this machine's.
      timed: instead of timing.
    """
    if model.dtype == "auto" and kept:
        return kept

    def choose() -> tuple[str, str, str]:
        device = device_name(cpu)
        if model.dtype != "auto":
            return model.dtype, device, f"precision: {model.dtype} (model.dtype)"
        if jax.default_backend() != "cpu":
            dtype = compute_dtype(model).name
            return dtype, device, f"precision: {dtype} (auto: {device})"
        sizes = encoder.hidden_size, encoder.intermediate_size
        dtype, reason = _on_cpu((cpu or hardware.cpu()).has_bfloat16, *sizes, training, timed)
        return dtype, device, f"precision: {dtype} (auto: {reason}; {device})"

    jax.devices()  # by all processes: that of process 0 alone would wait for the others', which wait for its answer
    return Precision(*distributed.on_first(choose))


def _on_cpu(has_bfloat16: bool | None, width: int, inner: int, training: bool, timed: Callable) -> tuple[str, str]:
    """The compute type for a CPU, and the reason."""
    if has_bfloat16 is False:
        return "float32", "no bfloat16 units"
    if width * inner < NARROW:
        return "float32", f"matmuls with {width} x {inner} weights are too small to time"
    float32, bfloat16 = timed(width, inner, training)
    compared = f"float32 {1e3 * float32:.1f} ms, bfloat16 {1e3 * bfloat16:.1f} ms for {width} x {inner} weights"
    return "bfloat16" if FASTER * bfloat16 <= float32 else "float32", compared


def device_name(cpu: hardware.Cpu | None = None) -> str:
    """The kind of the devices in use: `TPU v5 lite`, `AMD EPYC (avx2)`."""
    return str(cpu or hardware.cpu()) if jax.default_backend() == "cpu" else jax.devices()[0].device_kind


def kept_precision(folder: RunFolder, *, resuming: bool) -> Precision | None:
    """What `auto` is for a run already; None where that is to be chosen. All processes get process 0's answer.

    A run that asked for `auto` and has not kept it was begun before there was a choice: in float32 on CPU, in bfloat16
    elsewhere. A run that named its compute type has none to keep.

    Args:
      folder: a run, or a folder where there will be one.
      resuming: whether it is also kept on another kind of device.
    """

    def read() -> dict[str, str] | None:
        if not folder.config_file.exists() or folder.config().model.dtype != "auto":
            return None
        record = folder.precision() or {"dtype": compute_dtype(Model()).name, "device": device_name()}
        return record if resuming or record["device"] == device_name() else None

    jax.devices()  # as in `choose_precision`
    record = distributed.on_first(read)
    return record and Precision(**record, said=f"precision: {record['dtype']} (auto: that of the run)")
