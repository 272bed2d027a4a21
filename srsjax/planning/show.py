"""Prints a plan."""

from __future__ import annotations

from collections import defaultdict

from rich.table import Column, Table

from srsjax.console import Console
from srsjax.hardware import Chip
from srsjax.planning import floor
from srsjax.planning.program import Plan, Program

SIZES = (8, 16, 64, 256)
"""Numbers of devices in the scaling table."""


def plan(console: Console, made: Plan) -> None:
    """Prints memory, collectives and floor of every program, and the scaling table."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in made.session.mesh.shape.items())
    config = made.config
    console.print(f"mesh: {mesh} on {made.target.name}")
    console.print(made.session.attention.said)
    console.print(
        f"batch: {config.batch.rows} rows x {config.batch.tokens} tokens in {config.batch.micro_batches} "
        f"micro-batch(es), remat {config.model.remat}; {made.training.examples:,.0f} examples a step, "
        f"{made.training.example_flops / 1e6:,.1f} MFLOP each"
    )
    console.print(_memory(made))
    for name, program in made.programs.items():
        if program.refused:
            console.print(f"{name}: the compiler refused it: {program.refused}")
        if program.memory.counted:
            console.print(f"{name}: {program.memory.counted}")
    console.print(_collectives(made))
    chip = made.target.chip
    if chip is None:
        console.print("floor: no figures for this device in srsjax/hardware.py")
        return
    console.print(_floors(made, chip))
    console.print(
        "floor: the longest of the three at the chip's best, all overlapped; memory is an estimate from XLA's count"
    )
    if made.session.mesh.size == made.session.mesh.shape["data"] > 1 and not made.training.refused:
        console.print(_scaling(made, chip))


def advice(made: Plan) -> list[str]:
    """Changes that reduce a plan's memory, the cheapest first."""
    config, memory, size = made.config, made.training.memory, made.session.mesh.size
    lines = []
    own = config.batch.rows // (made.session.mesh.shape["data"] * made.session.mesh.shape["fsdp"])
    state = memory.parameters + memory.optimizer
    if made.session.mesh.shape["fsdp"] < size and state > memory.total / 4:
        lines.append(f"--mesh.data 1 --mesh.fsdp {size}: divides the {_mib(state)} MiB of parameters and optimizer")
    if own > config.batch.micro_batches:
        more = min(part for part in range(config.batch.micro_batches + 1, own + 1) if own % part == 0)
        lines.append(f"--batch.micro_batches {more}: fewer activations at once, the same result")
    if config.model.remat == "none":
        lines.append("--model.remat dots: keeps products only, computes the rest again")
    if config.model.remat != "full":
        lines.append("--model.remat full: keeps layer inputs only, a third more arithmetic")
    if not lines:
        lines.append("fewer --batch.rows or --batch.tokens, or more devices")
    return lines


def _memory(made: Plan) -> Table:
    columns = [Column(name, justify="right") for name in made.programs]
    table = Table("MiB on one device", *columns)
    for name in ("parameters", "optimizer", "batch", "temporary", "total"):
        label = {"batch": "batches (2)", "temporary": "activations, temporary"}.get(name, name)
        table.add_row(label, *(_mib(getattr(program.memory, name)) for program in made.programs.values()))
    known = _mib(made.target.memory) if made.target.memory else "unknown (--memory)"
    table.add_row("memory of the device", *[known] * len(columns), style="bold")
    return table


def _collectives(made: Plan) -> Table:
    right = [Column(name, justify="right") for name in ("devices", "runs a step", "MiB", "MiB sent")]
    table = Table("program", "collective", *right)
    for name, program in made.programs.items():
        sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        for each in program.collectives:
            entry = sums[each.kind, each.group]
            entry[0] += each.count
            entry[1] += each.count * each.bytes
            entry[2] += each.sent
        if not sums:
            table.add_row(name, "unknown" if program.refused else "none", *[""] * 4)
        for (kind, group), (count, size, sent) in sums.items():
            table.add_row(name, kind, str(group), f"{count:,}", f"{size / 2**20:,.3f}", f"{sent / 2**20:,.3f}")
    return table


def _floors(made: Plan, chip: Chip) -> Table:
    right = [Column(name, justify="right") for name in made.programs]
    table = Table(f"floor on {chip.name}", *right)
    floors = [(program.floor(chip), program) for program in made.programs.values()]

    def row(label: str, text) -> None:
        table.add_row(label, *("unknown" if program.refused else text(found, program) for found, program in floors))

    row("arithmetic, ms", lambda found, _: f"{1e3 * found.arithmetic:.3f}")
    row("memory, ms", lambda found, _: f"{1e3 * found.memory:.3f}")
    row("network, ms", lambda found, _: f"{1e3 * found.network:.3f}")
    row("bound by", lambda found, _: found.bound)
    row("examples/s of the mesh", _rate)
    row("compiled in, s", lambda _, program: f"{program.seconds:.0f}")
    return table


def _rate(found: floor.Floor, program: Program) -> str:
    return f"{program.examples / found.step:,.0f}"


def _scaling(made: Plan, chip: Chip) -> Table:
    sent = sum(each.bytes * each.count for each in made.training.collectives if each.kind == "all-reduce")
    one, work = made.training.floor(chip), made.training.examples / made.session.mesh.size
    right = [Column(name, justify="right") for name in ("network, ms", "efficiency, nothing hidden", "examples/s")]
    table = Table(Column("devices", justify="right"), *right, title="the same rows on each device, on paper")
    for n, network, efficiency in floor.weak_scaling(chip, one, sent, SIZES):
        rate = n * work * efficiency / max(one.arithmetic, one.memory)
        table.add_row(str(n), f"{1e3 * network:.3f}", f"{efficiency:.1%}", f"{rate:,.0f}")
    return table


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f}"
