"""Parses the text of a compiled XLA program for its collectives and its memory traffic."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"\b(pred|bf16|token|[a-z]\d+[a-z0-9]*)\[([\d,]*)\]")
ON_CHIP = re.compile(r"\b[a-z]\w*\[[\d,]*\]\{[^{}]*S\([1-9]\)[^{}]*\}")
CALLED = re.compile(r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\](?:, device_ids=\([^)]*\))? \{([^}]*)\}")
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional", "call"}
"""Instructions that move no bytes by themselves."""


@dataclass(frozen=True)
class Collective:
    """One collective instruction of a program."""

    kind: str
    """One of `KINDS`."""
    count: int
    """Executions per step; more than 1 in a loop."""
    bytes: float
    """Bytes per execution of the whole array that the devices of a group share: operand of all-reduce and
    reduce-scatter, result of all-gather; what one device holds for the other kinds."""
    group: int
    """Devices of a replica group, n."""

    @property
    def sent(self) -> float:
        """Bytes that a device must send per step, with the best algorithm without in-network reduction.

        all-reduce 2 (n - 1) / n x bytes (a ring: reduce-scatter, then all-gather); all-gather, reduce-scatter and
        all-to-all (n - 1) / n x bytes; collective-permute bytes.
        """
        if self.kind == "collective-permute":
            return self.count * self.bytes
        share = (self.group - 1) / self.group
        return self.count * self.bytes * (2 * share if self.kind == "all-reduce" else share)


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    rest: str


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), in program order, without those of a single device.

    Args:
      text: HLO after partitioning and optimisation.
      devices: the size of the mesh, which is the group of an instruction without replica groups.

    Raises:
      ValueError: the text is not an HLO module, or has replica groups in an unknown format.
    """
    computations, entry = _computations(text)
    found = []
    for name, times in _walk(computations, entry):
        for instruction in computations[name]:
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            group = _group(instruction.rest, devices)
            if kind == "all-reduce" and "all-reduce-scatter" in name:  # as the TPU compiler writes a reduce-scatter
                kind = "reduce-scatter"
                size = _bytes(instruction.shape)
            else:
                size = _payload(kind, instruction, group)
            if group > 1:
                found.append(Collective(kind, times, size, group))
    return found


def traffic_factor(text: str) -> float:
    """Factor from XLA's `bytes accessed` of a program to the traffic of the device's memory.

    XLA counts a loop's body once, whatever its trip count, and on TPU counts arrays in on-chip memory (`S(1)` in
    their layout) like all others. The factor is the ratio of both ways to count the operands and results of all
    instructions outside of fusions.
    """
    computations, entry = _computations(text)
    counted = real = 0.0
    for name, times in _walk(computations, entry, fusions=False):
        shapes = {instruction.name: instruction.shape for instruction in computations[name]}
        for instruction in computations[name]:
            if instruction.op in FREE or instruction.op.endswith("-done"):
                continue
            operands = re.findall(r"%([\w.\-]+)", instruction.rest.partition(")")[0])
            touched = [instruction.shape, *(shapes[operand] for operand in operands if operand in shapes)]
            counted += sum(map(_bytes, touched))
            real += times * sum(_bytes(ON_CHIP.sub("", shape)) for shape in touched)
    return real / counted if counted else 1.0


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions of each computation by its name, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := INSTRUCTION.match(line)):
            current.append(_Instruction(*found.groups()))
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _walk(computations: dict, name: str, times: int = 1, fusions: bool = True) -> Iterator[tuple[str, int]]:
    """Every computation that runs and its number of executions. A loop of unknown length counts once."""
    yield name, times
    for instruction in computations[name]:
        if instruction.op.endswith(("-done", "-update")) or (instruction.op == "fusion" and not fusions):
            continue
        trips = int(found[1]) if instruction.op == "while" and (found := TRIPS.search(instruction.rest)) else 1
        called = [] if instruction.op in ("reduce", "sort", "scatter", *KINDS) else CALLED.findall(instruction.rest)
        if branches := BRANCHES.search(instruction.rest):
            called += re.findall(r"%?([\w.\-]+)", branches[1])
        for other in called:
            if other in computations:
                yield from _walk(computations, other, times * trips, fusions)


def _payload(kind: str, instruction: _Instruction, group: int) -> float:
    """Bytes as `Collective.bytes` defines them."""
    shape = instruction.shape
    if instruction.op in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...)
        parts = _split(shape)
        shape = parts[1] if len(parts) > 1 else shape
    size = _bytes(shape)
    return size * group if kind == "reduce-scatter" else size


def _group(rest: str, devices: int) -> int:
    """Devices of one replica group."""
    if found := MESH.search(rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := LISTED.search(rest):
        return len(found[1].split(","))
    if found := IOTA.search(rest):
        return int(found[1])
    if "replica_groups={}" in rest or "source_target_pairs" in rest or "replica_groups" not in rest:
        return devices
    raise ValueError(f"replica groups of an unknown form: {rest[:200]}")


def _split(shape: str) -> list[str]:
    """The elements of a tuple's type; those of a nested tuple stay together."""
    parts, depth, start = [], 0, 1
    for at, letter in enumerate(shape):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[start:at])
            start = at + 1
    return parts


def _bytes(shape: str) -> float:
    """Bytes of an array's or a tuple's type, all elements together."""
    total = 0.0
    for dtype, sizes in ARRAY.findall(shape):
        elements = math.prod(int(size) for size in sizes.split(",") if size)
        total += elements * _width(dtype)
    return total


def _width(dtype: str) -> float:
    """Bytes of one element; `s4` and the like take half of one."""
    if dtype == "pred":
        return 1
    return 0 if dtype == "token" else int(re.sub(r"\D*(\d+).*", r"\1", dtype)) / 8
