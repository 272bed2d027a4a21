"""The table of parameters at the start of a run: by part of the model, and what each device holds."""

from __future__ import annotations

import io
import re

import jax

from srsjax.config import Mesh, Model, Optimizer
from srsjax.console import Console
from srsjax.training import show

LARGE = Model(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, max_positions=64)


def shown(session) -> dict[str, list[str]]:
    """The cells of each line by its first, from a table no wider than 100 columns."""
    console = Console(file=io.StringIO(), width=100)
    console.print(show.parameters(session))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 100 and len(lines) <= 12
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_parts_are_counted_with_what_a_device_holds(problem):
    p = problem(mesh=Mesh(2, 2, 2), model=LARGE)
    rows = shown(p.session)
    assert rows["parameters"] == ["count", "size", "per device", "divided over", "trained"]
    sizes = [array.nbytes for path, array in p.state.params.items() if path.startswith("bert/layers/")]
    own = [array.addressable_shards[0].data.nbytes for path, array in p.state.params.items() if "/layers/" in path]
    expected = [f"{sum(sizes) // 4:,}", f"{sum(sizes) / 2**10:.1f} KiB", f"{sum(own) / 2**10:.1f} KiB"]
    assert rows["bert/layers (0 to 1)"] == [*expected, "fsdp, tensor", "yes"]
    assert rows["head"] == ["65", "260 B", "260 B", "-", "yes"]
    held = sum(array.addressable_shards[0].data.nbytes for array in p.state.params.values())
    assert rows["all, float32"][2] == f"{held / 2**10:.1f} KiB"


def test_one_device_has_no_sharding_and_frozen_parts_say_so(problem):
    p = problem(devices=jax.devices()[:1], optimizer=Optimizer(frozen=("^bert/embeddings/", "layers/0/attention")))
    rows = shown(p.session)
    assert rows["parameters"] == ["count", "size", "trained"]
    assert rows["bert/embeddings"][-1] == "frozen"
    trained = sum(array.size for array in p.state.params.values())
    assert rows["all, float32"] == [
        f"{trained + sum(x.size for x in p.state.frozen.values()):,}",
        *rows["all, float32"][1:2],
        f"{trained:,}",
    ]
