"""Searches for a mesh, a remat policy and a number of micro-batches with which a global batch fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from srsjax.config import Mesh, Remat, TrainConfig
from srsjax.errors import InputError
from srsjax.model.bert import BertConfig
from srsjax.planning.program import Plan

REMATS: tuple[Remat, ...] = ("none", "dots", "full")
"""From the fastest to the smallest."""

TRIES = 3
"""Numbers of micro-batches compiled per mesh and policy, besides the whole batch."""


def find(
    config: TrainConfig, bert: BertConfig, devices: int, make: Callable[[TrainConfig], Plan], say: Callable[[str], None]
) -> Plan | None:
    """The fastest plan that fits, on the first mesh where one does; None if none does.

    On a mesh every remat policy is compiled with about the fewest micro-batches that suffice. Of these (at most three)
    plans the one with the lowest floor is chosen. Without remat and with the whole batch at once nothing is computed or
    read twice, so no other is tried if this one fits; nor if the chip is unknown, in which case the order of the
    policies decides.

    Args:
      config: the requested config; its mesh, remat policy and micro-batches are replaced.
      bert: the encoder's sizes, for the meshes that divide them.
      devices: how many there are.
      make: compiles a config.
      say: called with a line for every attempt.
    """
    for mesh in meshes(config.batch.rows, bert, devices):
        fitting = []
        for remat in REMATS:
            tried = replace(config, mesh=mesh, model=replace(config.model, remat=remat))
            try:
                plan = _fewest(tried, make, say)
            except InputError as error:  # fsdp does not divide enough of the parameters
                say(f"{_name(tried)}: not possible, {error}")
                break
            if plan.fits:
                fitting.append(plan)
            best = plan.fits and (plan.config.batch.micro_batches == 1 or plan.target.chip is None)
            if best or _room(plan) <= 0:  # with no room for the state alone, nothing on this mesh fits
                break
        if fitting:
            return min(fitting, key=_seconds)
    return None


def meshes(rows: int, bert: BertConfig, devices: int) -> list[Mesh]:
    """Meshes that divide the rows and the layers, in the order of expected speed.

    Data parallelism sends the gradients once per step; fsdp also gathers the parameters for every micro-batch; tensor
    parallelism sends activations in every layer.
    """
    made = []
    for tensor in (1, 2, 4, 8):
        if devices % tensor == 0 and bert.num_heads % tensor == 0 and bert.intermediate_size % tensor == 0:
            part = devices // tensor
            made += [Mesh(part, 1, tensor), Mesh(1, part, tensor)]
    return [mesh for mesh in dict.fromkeys(made) if rows % (mesh.data * mesh.fsdp) == 0]


def flags(config: TrainConfig) -> str:
    """The flags with which `train` runs this config's mesh, policy and micro-batches."""
    mesh = config.mesh
    return (
        f"--mesh.data {mesh.data} --mesh.fsdp {mesh.fsdp} --mesh.tensor {mesh.tensor} "
        f"--model.remat {config.model.remat} --batch.micro_batches {config.batch.micro_batches}"
    )


def _fewest(config: TrainConfig, make: Callable[[TrainConfig], Plan], say: Callable[[str], None]) -> Plan:
    """The first plan that fits, from the whole batch to more and more micro-batches, or the last one tried.

    Not every number is compiled: activations are assumed to shrink with the micro-batch, beside two sets of gradients
    (the sum and the newest); the first number predicted to fit is tried next, then those after it.
    """
    own = config.batch.rows // (config.mesh.data * config.mesh.fsdp)
    choices = [parts for parts in range(1, own + 1) if own % parts == 0]
    plan = _attempt(config, 1, make, say)
    memory, gradients, room = plan.training.memory, plan.training.memory.parameters, _room(plan)
    if plan.fits or room <= 0:
        return plan
    activations = max(memory.temporary - gradients, 0.0)
    enough = [parts for parts in choices[1:] if 2 * gradients + activations / parts <= room] or choices[-1:]
    for parts in enough[:TRIES]:
        if parts > 1:
            plan = _attempt(config, parts, make, say)
        if plan.fits:
            break
    return plan


def _attempt(config: TrainConfig, parts: int, make: Callable[[TrainConfig], Plan], say: Callable[[str], None]) -> Plan:
    config = replace(config, batch=replace(config.batch, micro_batches=parts))
    plan = make(config)
    floor = plan.floor(plan.training)
    most = max(program.memory.total for program in plan.programs.values())
    time = f", floor {1e3 * floor.step:.2f} ms" if floor and not plan.training.refused else ""
    say(f"{_name(config)}: {most / 2**20:,.1f} MiB a device, {'fits' if plan.fits else 'does not fit'}{time}")
    return plan


def _room(plan: Plan) -> float:
    """Bytes per device available for the training step's temporary memory."""
    held = replace(plan.training.memory, temporary=0.0)
    return (plan.target.memory or 0.0) - held.total


def _seconds(plan: Plan) -> float:
    floor = plan.floor(plan.training)
    return floor.step if floor else 0.0


def _name(config: TrainConfig) -> str:
    mesh, parts = config.mesh, config.batch.micro_batches
    sizes = f"data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}"
    return f"{sizes}; remat {config.model.remat}; {parts} micro-batch{'es' if parts > 1 else ''}"
