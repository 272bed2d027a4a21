"""Compiles the training and the scoring step of a config for a target, and reads their needs."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import check_lengths
from srsjax.data.store.arrays import Store
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.hardware import Chip
from srsjax.model import flops
from srsjax.model.attention_choice import choose, unmeasured
from srsjax.model.bert import BertConfig
from srsjax.model.compute import compute_dtype
from srsjax.planning import floor, hlo, memory
from srsjax.planning.devices import Target
from srsjax.runs import session as sessions
from srsjax.runs.distillation import placeholder
from srsjax.runs.evaluation import scoring_batches
from srsjax.runs.precision import choose_precision
from srsjax.runs.session import Session, open_session, state_target
from srsjax.runs.shapes import batch_shape
from srsjax.runs.sharding import batch_target, row_divisor
from srsjax.runs.spec import layout_of, make_spec
from srsjax.runs.steps import check_rows, training_batches, training_step, with_rows
from srsjax.runs.tables import optimizer_of

SAMPLE = 4
"""Number of real batches whose arithmetic is counted."""


@dataclass(frozen=True)
class Program:
    """A compiled program on one device of its mesh."""

    memory: memory.Memory
    collectives: list[hlo.Collective]
    flops: float
    """Floating-point operations of matmuls on real tokens, including those that `model.remat full` repeats."""
    accessed: float
    """Bytes that its instructions read and write in the device's memory: XLA's count, corrected for loops and on-chip
    arrays (`hlo.traffic_factor`); of a kernel, operands and results."""
    examples: float
    """Examples (candidates) per execution, over the whole mesh."""
    example_flops: float
    """Floating-point operations per example, without repetition."""
    seconds: float
    """Compilation time."""
    refused: str = ""
    """The compiler's message if the program did not fit; empty otherwise."""

    def floor(self, chip: Chip) -> floor.Floor:
        """Lower bound of its time on a chip."""
        return floor.floor(chip, self.flops, self.accessed, sum(collective.sent for collective in self.collectives))


@dataclass(frozen=True)
class Plan:
    """A config on a target."""

    config: TrainConfig
    target: Target
    session: Session
    training: Program
    scoring: Program

    @cached_property
    def programs(self) -> dict[str, Program]:
        """By name."""
        return {"training": self.training, "scoring": self.scoring}

    @property
    def fits(self) -> bool | None:
        """Whether every program fits in a device's memory; None if that is unknown."""
        if any(program.refused for program in self.programs.values()):
            return False
        if self.target.memory is None:
            return None
        return max(program.memory.total for program in self.programs.values()) <= self.target.memory

    def floor(self, program: Program) -> floor.Floor | None:
        """Lower bound of a program's time; None for a device that is not in the table."""
        return program.floor(self.target.chip) if self.target.chip else None


def make_plan(config: TrainConfig, target: Target, store: Store, text: TextEncoder) -> Plan:
    """Compiles a config's programs for a target. Nothing runs on it, and no array is put on it.

    Raises InputError for everything that `train` would refuse.
    """
    spec = make_spec(config, text, store.manifest)
    layout, bert = layout_of(spec, text), spec.encoder
    config = resolved(config, target, bert)
    config = with_rows(config, store, layout, target.devices)
    session = open_session(config, spec, target.devices, choose=choose if target.here else unmeasured)
    check_lengths(config, layout, bert.longest)
    check_rows(config, session.mesh)
    batches = training_batches(config, store, layout, teacher=placeholder(config, spec, store))
    session = replace(session, spec=replace(spec, candidates=batches.candidates))
    sample = [batch for batch, _ in itertools.islice(batches, SAMPLE)]
    batches.close()
    optimizer = optimizer_of(config.optimizer, batches.steps, list(session.trained(session.shapes)), session.spec)
    state = state_target(session, optimizer)
    batch = batch_target(session.mesh, batches.first(), row_axis=1, shares=1)  # read whole, whatever hosts there are
    itemsize = compute_dtype(config.model).itemsize
    row = config.batch.tokens * bert.hidden_size * itemsize
    rows = config.batch.rows / config.batch.micro_batches / row_divisor(session.mesh)
    gradients = memory.on_device(state.params) if config.optimizer.clip_norm > 0 else 0.0
    trained = _compile(
        training_step(config, session, optimizer),
        (state, batch),
        memory.Memory(memory.on_device(state.all_params), memory.on_device(state.opt), memory.on_device(batch), 0.0),
        (gradients + spec.reads_text * bert.num_layers * rows * row, "the gradients and every layer's input"),
        _work(config, session, sample, flops.TRAINING),
        session.mesh.size,
        repeated=1 / flops.TRAINING if config.model.remat == "full" else 0.0,
    )
    shape = batch_shape(config, session.spec, layout, session.mesh)
    given = scoring_batches(store.split("train"), store.items, shape)
    sample = [batch for batch, _ in itertools.islice(given, SAMPLE)]
    given.close()
    batch = batch_target(session.mesh, sample[0], row_axis=0, shares=1)
    params = sessions.target(session)
    scored = _compile(
        session.predict_step,
        (params, batch),
        memory.Memory(memory.on_device(params), 0.0, memory.on_device(batch), 0.0),
        (shape.eval_rows / row_divisor(session.mesh) * row, "the hidden states of one layer"),
        _work(config, session, sample, 1),
        session.mesh.size,
    )
    return Plan(config, target, session, trained, scored)


def resolved(config: TrainConfig, target: Target, encoder: BertConfig) -> TrainConfig:
    """The config with the compute type that `auto` means on the target."""
    if config.model.dtype != "auto" or target.here:
        return choose_precision(config.model, encoder).apply(config)
    return replace(config, model=replace(config.model, dtype="bfloat16"))


def _compile(
    jitted: Any,
    arguments: tuple,
    held: memory.Memory,
    least: tuple[float, str],
    work: tuple[float, float],
    devices: int,
    repeated: float = 0.0,
) -> Program:
    """`jitted` compiled for `arguments`.

    Args:
      held: memory per device besides the program's temporary memory, with one batch.
      least: lower bound of the program's temporary bytes, and what they are.
      work: from `_work`.
      devices: size of the mesh.
      repeated: share of the arithmetic that is repeated.
    """
    need, examples = work
    computed = need * (1 + repeated) / devices
    held = replace(held, batch=memory.BATCHES * held.batch)
    started = time.monotonic()
    try:
        compiled = jitted.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error)
        held = replace(held, temporary=memory.refused_temporary(said, held, least[0]))
        seconds = time.monotonic() - started
        return Program(held, [], computed, 0.0, examples, need / examples, seconds, said.splitlines()[0])
    seconds, text = time.monotonic() - started, compiled.as_text()
    temporary, counted = memory.temporary(compiled, *least)
    return Program(
        replace(held, temporary=temporary, counted=counted),
        hlo.collectives(text, devices),
        computed,
        compiled.cost_analysis()["bytes accessed"] * hlo.traffic_factor(text),
        examples,
        need / examples,
        seconds,
    )


def _work(config: TrainConfig, session: Session, sample: list[PackedBatch], passes: int) -> tuple[float, float]:
    """Floating-point operations and examples of a batch: the mean over `sample`, `passes` forward passes each."""
    need = [flops.forward_flops(session.spec, batch) for batch in sample]
    return passes * float(np.mean(need)), float(np.mean([(batch.group >= 0).sum() for batch in sample]))
