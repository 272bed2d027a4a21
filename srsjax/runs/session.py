"""What training, evaluation and scoring all set up the same way: mesh, model, shardings, jitted prediction."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from srsjax.config import TrainConfig
from srsjax.console import say
from srsjax.model import ctr, lora
from srsjax.model.attention_choice import NONE, Choice, Job, choose
from srsjax.model.compute import Compute, compute_dtype
from srsjax.model.float8 import check_float8
from srsjax.model.int8 import Quantized
from srsjax.model.spec import ModelSpec
from srsjax.objectives import objectives
from srsjax.objectives.losses import Objectives
from srsjax.runs.checkpoints import load_params
from srsjax.runs.precision import choose_precision, kept_precision
from srsjax.runs.predict import jit_predict_step
from srsjax.runs.quantization import quantized
from srsjax.runs.room import check_room
from srsjax.runs.rules import found_by
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.sharding import (
    make_mesh,
    parameter_shardings,
    put_same,
    quantized_sharding,
    row_divisor,
    state_shardings,
)
from srsjax.runs.state import TrainState
from srsjax.runs.warm_start import read_spec, stored_params

Quantize = Literal["none", "int8"]
"""What parameters become when a run is loaded."""


@dataclass(frozen=True)
class Session:
    """A model on a mesh, without parameters."""

    mesh: jax.sharding.Mesh
    spec: ModelSpec
    graphdef: nnx.GraphDef
    """The model without parameters."""
    forward: Callable
    """(params, batch, *, dropout_key=None) -> logits [R, C, K] float32."""
    init: Callable
    """key -> parameters, a flat dict of float32 arrays."""
    shapes: dict[str, jax.ShapeDtypeStruct]
    shardings: dict[str, NamedSharding]
    predict_step: Callable
    """Jitted (params, batch [R, ...]) -> logits."""
    attention: Choice
    """What computes attention, and why."""
    compute: Compute
    """How `graphdef` is computed."""
    frozen: frozenset[str] = frozenset()
    """Paths of parameters that are not trained."""

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(shape.shape) for shape in self.shapes.values())

    def objectives(self, config: TrainConfig) -> Objectives:
        """What each task of the config trains and predicts, and where its outputs are."""
        distill = config.distill if config.distill.teacher else None
        fairness = config.fairness if config.fairness.by and config.fairness.method == "opportunity" else None
        return objectives(config.schema.tasks, self.spec.outputs, distill, fairness)

    def trained(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What belongs to trained parameters, of a dict over all of them."""
        return {path: array for path, array in arrays.items() if path not in self.frozen}

    def untrained(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What belongs to frozen parameters, of a dict over all of them."""
        return {path: array for path, array in arrays.items() if path in self.frozen}


def open_session(
    config: TrainConfig,
    spec: ModelSpec,
    devices: Sequence[jax.Device] | None = None,
    *,
    training: bool = True,
    choose: Callable[[str, Job], Choice] = choose,
) -> Session:
    """Builds the model for a config on `devices` (default all); parameters are shapes so far.

    `choose` decides on the attention; `attention_choice.unmeasured` does so where the devices cannot run anything.

    Raises InputError where the mesh, `model.attention` or `model.dtype` does not fit the devices.
    """
    mesh = make_mesh(config.mesh, devices)
    if config.model.dtype == "float8":
        check_float8(mesh.devices.flat[0])
    init = partial(ctr.init, spec)
    shapes, shardings = _places(spec, mesh)
    attention = NONE
    if spec.reads_text:
        attention = choose(config.model.attention, attention_job(config, spec, mesh, training))
    compute = Compute.of(config.model, attention.attend)
    graphdef = ctr.build(spec, compute)
    forward = partial(ctr.forward, graphdef)
    predict_step = jit_predict_step(forward, mesh, shardings)
    frozen = found_by(config.optimizer.frozen, shapes, "optimizer.frozen")
    if spec.adapter_rank:
        frozen |= found_by((lora.FROZEN,), shapes, "model.adapter_rank")
    return Session(mesh, spec, graphdef, forward, init, shapes, shardings, predict_step, attention, compute, frozen)


def attention_job(config: TrainConfig, spec: ModelSpec, mesh: jax.sharding.Mesh, training: bool) -> Job:
    """What the attention of a run has to do; rows are rounded up to what the mesh divides."""
    divisor, bert = row_divisor(mesh), spec.encoder
    return Job(
        mesh=mesh,
        interaction=spec.interaction.name,
        rows=-(-config.batch.rows // config.batch.micro_batches // divisor) * divisor,
        tokens=config.batch.tokens,
        heads=bert.num_heads,
        head_dim=bert.head_width,
        dtype=compute_dtype(config.model),
        dropout=bert.attention_dropout,
        training=training,
        longest=spec.longest_part,
    )


def target(session: Session) -> dict[str, jax.ShapeDtypeStruct]:
    """What a restored parameter must be: shape, dtype and sharding."""
    return _target(session.shapes, session.shardings)


def _places(spec: ModelSpec, mesh: jax.sharding.Mesh):
    """Shape and sharding of every parameter, by path."""
    shapes = jax.eval_shape(partial(ctr.init, spec), jax.random.key(0))
    return shapes, parameter_shardings(mesh, shapes)


def _target(shapes: Mapping[str, Any], shardings: Mapping[str, NamedSharding]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=shardings[path]) for path, shape in shapes.items()
    }


def state_target(session: Session, optimizer: optax.GradientTransformation) -> TrainState:
    """What a restored training state must be: shape, dtype and sharding of every array."""
    opt = jax.eval_shape(optimizer.init, session.trained(session.shapes))
    shardings = state_shardings(session.mesh, session.shardings, opt)
    opt = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), opt, shardings)
    whole = NamedSharding(session.mesh, PartitionSpec())
    params = target(session)
    step: Any = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
    return TrainState(step, session.trained(params), opt, session.untrained(params))


def load_run(
    folder: RunFolder,
    config: TrainConfig,
    devices: Sequence[jax.Device] | None = None,
    quantize: Quantize = "none",
) -> tuple[Session, dict[str, Any]]:
    """The model of a finished run with its best parameters, on `devices` (default all); those of a compressed run as
    they are.

    With `quantize` all parameters that may be 8-bit are made so (`srsjax.runs.quantization`).

    Raises InputError where the run is not finished, and where a file of it is not the one that it was made with.

    An attention backend that the run was trained with says nothing about these devices: unless `config` asks for
    another one than the run's own, it is chosen anew.
    """
    folder.verify()
    if not folder.identity():
        say(f"note: {folder.path}: made before runs had checksums; its files cannot be checked")
    step = folder.best_step()
    if config.model.attention == folder.config().model.attention:
        config = replace(config, model=replace(config.model, attention="auto"))
    spec = read_spec(folder)
    kept = kept_precision(folder, resuming=False)
    config = choose_precision(config.model, spec.encoder, kept, training=False).apply(config)
    check_room(config, spec, training=False)
    session = open_session(config, replace(spec, adapter_rank=0), devices, training=False)
    if folder.compressed.exists():
        params = stored_params(folder)
    else:
        params = load_params(folder.checkpoints, step, _target(*_places(spec, session.mesh)), folder.identity())
        if spec.adapter_rank:
            params = jax.jit(lora.merged, out_shardings=session.shardings)(params)
    if quantize == "int8" or folder.compressed.exists():
        return with_params(session, quantized(params) if quantize == "int8" else params)
    return session, params


def with_params(session: Session, params: Mapping[str, Any]) -> tuple[Session, dict[str, Any]]:
    """A session for parameters some of which are `Quantized`, and these parameters on its devices."""
    shardings: dict[str, Any] = {path: session.shardings[path] for path in params}
    for path, value in params.items():
        if isinstance(value, Quantized):
            shardings[path] = quantized_sharding(session.mesh, shardings[path], value)
    step = jit_predict_step(session.forward, session.mesh, shardings)
    placed = jax.tree.map(put_same, dict(params), shardings)
    return replace(session, shardings=shardings, predict_step=step), placed


CAST_WHEN_READ = re.compile(r"^bert/layers/\d+/.*/kernel$")
"""Paths of the parameters that every product casts to the compute dtype (`srsjax.model.dense.contract`)."""


def for_scoring(session: Session, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with the encoder's kernels in the compute dtype already: logits are the same bit for bit, no call has
    to cast them again, and in bfloat16 they take half the memory."""
    dtype = session.compute.dtype
    cast = {path for path, value in params.items() if CAST_WHEN_READ.match(path) and not isinstance(value, Quantized)}
    return {path: value.astype(dtype) if path in cast else value for path, value in params.items()}


def initial_state(
    session: Session, optimizer: optax.GradientTransformation, seed: int, weights: dict[str, np.ndarray] | None = None
) -> TrainState:
    """Fresh state, born sharded: parameters drawn from the seed, those of `weights` put in their place."""
    weights = weights or {}
    fresh = {path: sharding for path, sharding in session.shardings.items() if path not in weights}

    def init(key):  # draws of given weights are left out of the program: compiling them takes longer than anything
        params = session.init(key)
        return {path: params[path] for path in fresh}

    params = jax.jit(init, out_shardings=fresh)(jax.random.key(seed))
    params |= {path: put_same(value, session.shardings[path]) for path, value in weights.items()}
    params = {path: params[path] for path in session.shapes}
    shardings = jax.tree.map(lambda shape: shape.sharding, state_target(session, optimizer))
    trained = session.trained(params)
    opt = jax.jit(optimizer.init, out_shardings=shardings.opt)(trained)
    return TrainState(put_same(np.int32(0), shardings.step), trained, opt, session.untrained(params))
