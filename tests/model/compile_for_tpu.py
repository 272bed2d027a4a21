"""Compiles the training step of BERT for eight TPU chips that need not be there, with plain XLA or with splash.

`python tests/model/compile_for_tpu.py splash --tokens 512` prints, for a device, the temporary memory of the step and
what it reads and writes by XLA's count (of a kernel: operands and results). Needs `jax[tpu]`, no TPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# No TPU is looked for: the program itself runs nothing, and the compiler is asked for a topology by name.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
sys.path.append(str(Path(__file__).parents[1]))  # tests/

import jax
import jax.numpy as jnp
import numpy as np
import optax
from batches import make_batch
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.config import Mesh, Model, Task
from srsjax.data.batches.batch import PackedBatch
from srsjax.model import ctr
from srsjax.model.attention import Attend, attend
from srsjax.model.attention_tpu import Splash
from srsjax.model.bert import BertConfig
from srsjax.model.compute import Compute
from srsjax.model.spec import ModelSpec
from srsjax.objectives import objectives
from srsjax.runs.sharding import make_mesh, parameter_shardings, state_shardings
from srsjax.runs.state import TrainState
from srsjax.runs.step import jit_train_step, make_train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attention", choices=["xla", "splash"])
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--interaction", default="split")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    devices = topologies.get_topology_desc(arguments.topology, "tpu").devices
    mesh = make_mesh(Mesh(-1, 2, 2), devices)
    start = time.perf_counter()
    step = compiled(mesh, Splash(mesh) if arguments.attention == "splash" else attend, arguments)
    memory, cost = step.memory_analysis(), step.cost_analysis()
    print(
        f"{arguments.attention}: {memory.temp_size_in_bytes / 1e6:.0f} MB temporary, "
        f"{cost['bytes accessed'] / 1e9:.1f} GB moved, {step.as_text().count('tpu_custom_call')} kernels, "
        f"compiled in {time.perf_counter() - start:.0f} s"
    )


def compiled(mesh: jax.sharding.Mesh, attention: Attend, arguments: argparse.Namespace) -> jax.stages.Compiled:
    """The training step of a BERT with heads of 64 without attention dropout, AdamW, on `mesh`."""
    model = Model(interaction=arguments.interaction, split_layers=arguments.layers // 3, dtype="bfloat16")
    width = arguments.hidden
    sizes = {"hidden_size": width, "num_heads": width // 64, "intermediate_size": 4 * width, "attention_dropout": 0.0}
    bert = BertConfig(30522, num_layers=arguments.layers, **sizes)
    spec = ModelSpec.of(model, bert)
    graphdef, optimizer = ctr.build(spec, Compute.of(model, attention)), optax.adamw(1e-4)
    goals = objectives((Task(),), spec.outputs)
    step = make_train_step(lambda *args, **kwargs: ctr.forward(graphdef, *args, **kwargs), goals, optimizer, 0)
    params = jax.eval_shape(lambda key: ctr.init(spec, key), jax.random.key(0))
    shapes = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params))
    placed = parameter_shardings(mesh, params)
    opt = state_shardings(mesh, placed, shapes.opt)
    shardings = TrainState(NamedSharding(mesh, P()), placed, opt)
    return jit_train_step(step, mesh, shardings).lower(shapes, batch(arguments.rows, arguments.tokens)).compile()


def batch(rows: int, tokens: int, slots: int = 16) -> PackedBatch:
    """Shapes of one micro-batch."""
    arrays = make_batch(np.zeros((rows, tokens), np.int32), slots=slots)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct((1, *array.shape), array.dtype), arrays)


if __name__ == "__main__":
    main()
