"""The table of parameters at the start of a run: what each device holds."""

from __future__ import annotations

import io
import re

from rich.console import Console

from srsjax.config import Mesh, Model
from srsjax.training import show


def test_the_table_tells_shape_sharding_and_bytes_a_device_in_100_columns(problem):
    large = Model(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, max_positions=64)
    session = problem(mesh=Mesh(2, 2, 2), model=large).session
    console = Console(file=io.StringIO(), width=100)
    console.print(show.parameters(session))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: re.split(r"\s{2,}", line.strip()) for line in lines}
    # [64, 3, 64] float32 in two layers, divided by fsdp 2 and tensor 2: 4 * 64 * 3 * 64 * 2 / 4 bytes.
    assert rows["bert/layers/0-1/attention/qkv/kernel"][1:] == ["64 x 3 x 64", "fsdp, –, tensor", "24,576", "24.0 KiB"]
    assert rows["bert/embeddings/token/embedding"][1:] == ["256 x 64", "–, fsdp+tensor", "16,384", "16.0 KiB"]
    assert rows["bert/pooler/bias"][1:] == ["64", "whole", "64", "256 B"]
    held = sum(array.addressable_shards[0].data.nbytes for array in problem(mesh=Mesh(2, 2, 2)).state.params.values())
    assert rows["all,"][-1] == f"{held / 2**10:.1f} KiB"
