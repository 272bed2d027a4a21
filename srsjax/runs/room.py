"""Refuses what no device can hold, by sizes alone and before anything is made.

What is counted is less than what is needed, so that nothing is refused that would fit: `srsjax.plan` says how much a
config really takes.
"""

from __future__ import annotations

import math
import os

import jax

from srsjax.config import TrainConfig
from srsjax.errors import InputError
from srsjax.model.bert import BertConfig
from srsjax.model.spec import ModelSpec

GIB = 2**30
TOKEN_BYTES, SLOT_BYTES = 20, 28
"""Of the arrays of a batch: of each token slot (`PackedBatch.tokens` and four more), and of each candidate slot."""


def check_room(config: TrainConfig, spec: ModelSpec, training: bool = True) -> None:
    """Raises InputError where parameters, or the tokens of a batch, take more memory than a device has.

    Of a batch only what a layer passes on to the next is counted, in two bytes a number: in training once a layer, for
    its gradient. Of parameters the weights and, in training, a gradient of the same size.
    """
    devices = jax.local_devices()
    has = memory_of(devices[0])
    if not has:
        return
    mesh, batch, bert = config.mesh, config.batch, spec.encoder
    shares = max(1, abs(mesh.fsdp)) * max(1, abs(mesh.tensor))
    if -1 in (mesh.fsdp, mesh.tensor):
        shares = jax.device_count()
    parameters = encoder_parameters(bert) if spec.reads_text else bert.hidden_size
    needed = parameters * (8 if training else 4) / shares
    if needed > has:
        raise InputError(
            f"model: found an encoder of {parameters:,} parameters, which take at least {_gib(needed)} of each device; "
            f"expected at most the {_gib(has)} that it has"
        )
    layers = bert.num_layers if training else 1
    held = 2 * bert.hidden_size * layers if spec.reads_text else 0
    rows = batch.rows / batch.micro_batches if training else batch.eval_rows
    found, fields = (batch.rows, "rows") if training else (batch.eval_rows, "eval_rows")
    needed = rows * (batch.tokens * (TOKEN_BYTES + held) + batch.candidates * SLOT_BYTES) / jax.device_count()
    if needed > has:
        slots = f" and {batch.candidates:,} candidates" if batch.candidates else ""
        advice = "; batch.micro_batches divides a step" if training else ""
        raise InputError(
            f"batch.{fields}: found {found:,} rows of {batch.tokens:,} tokens{slots}, which take at least "
            f"{_gib(needed)} of each device; expected at most the {_gib(has)} that it has{advice}"
        )


def encoder_parameters(bert: BertConfig) -> int:
    """Weights of an encoder's matrices."""
    width = bert.hidden_size
    layer = width * (4 * bert.attention_width + 2 * bert.intermediate_size)
    return width * (bert.vocab_size + bert.max_positions) + bert.num_layers * layer


def memory_of(device: jax.Device) -> float:
    """Bytes of a device of this process: of a CPU the machine's. 0 where it is unknown."""
    if device.platform == "cpu":
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        return float(math.prod(map(os.sysconf, names))) if {*names} <= {*os.sysconf_names} else 0.0
    try:
        return float((device.memory_stats() or {}).get("bytes_limit", 0))
    except jax.errors.JaxRuntimeError:
        return 0.0


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"
