"""From `config.Optimizer` to an Optax transformation: schedule, clipping, decay mask, layer-wise rates."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srsjax.bounds import Bounds
from srsjax.config import Optimizer
from srsjax.errors import InputError, near
from srsjax.runs.rules import found_by, match

# Decoupled weight decay is for matrices that multiply; shifts, scales and tables of positions and types are spared.
DECAY = [
    (r"^lora/", True),
    (r"(^|/)(bias|scale)$", False),
    (r"^(features|combine)/.*/(missing|place|query)$|^log_variance$", False),
    (r"embeddings/(position|token_type)/", False),
    (r"(^|/)(kernel|embedding)$", True),
]


LAYER = r"^bert/layers/(\d+)/"
"""Finds a parameter of an encoder layer, and its number."""
ARGUMENTS = (
    (re.compile(r"^((adam_)?b\d|momentum|decay|decay_rate)$"), Bounds(least=0, below=1)),
    (re.compile(r"^((adam_)?eps_root|eps|(adam_)?weight_decay|initial_accumulator_value)$"), Bounds(least=0)),
)
"""Bounds of the arguments of optimizers, by their names in Optax."""
UNFIT = ("lbfgs",)
"""Optimizers of Optax that take more than gradients; also all `schedule_free*`, which evaluate other parameters."""


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up to `learning_rate`, then the shape named, ending at 0 after `steps`.

    Raises InputError where the warm-up is not shorter than the run.
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if warmup >= steps > 1:
        raise InputError(
            f"optimizer.warmup: found {config.warmup:g} ({warmup} steps), expected fewer than the run's {steps}"
        )
    peak, rest = config.learning_rate, max(steps - warmup, 1)
    shapes = {
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }
    # Step 0 already learns: the ramp reaches the peak at step `warmup`, from peak / (warmup + 1).
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, shapes[config.schedule]()], [warmup]) if warmup else shapes[config.schedule]()


def learning_rates(config: Optimizer, steps: int) -> np.ndarray:
    """`schedule` of steps 0 to steps - 1, [steps] float32 on the host: a log line then asks nothing of a device."""
    return np.asarray(jax.jit(jax.vmap(schedule(config, steps)))(np.arange(steps)))


def learning_rate_multipliers(config: Optimizer, paths: list[str]) -> dict[str, float]:
    """Multiplier of each parameter's update: layer i of n has layer_decay ** (n - i), embeddings n + 1, the rest 1.

    Layer-wise learning-rate decay as in ULMFiT and ELECTRA; a head parameter has `head_multiplier`.
    """
    layers = [int(found.group(1)) for path in paths if (found := re.search(LAYER, path))]
    depth = max(layers, default=-1) + 1
    multipliers = {}
    for path in paths:
        layer = re.search(LAYER, path)
        if layer:
            multipliers[path] = config.layer_decay ** (depth - int(layer.group(1)))
        elif "embeddings/" in path:
            multipliers[path] = config.layer_decay ** (depth + 1)
        else:
            multipliers[path] = config.head_multiplier if path.startswith("head/") else 1.0
    return multipliers


def make_optimizer(config: Optimizer, steps: int, paths: list[str]) -> optax.GradientTransformation:
    """The whole chain for a flat dict of trained parameters with these paths: clip, optimizer, per-parameter rate.

    The global norm of all gradients is clipped before any optimizer sees them. Raises InputError for an unknown
    optimizer, an argument it does not take, or a group without parameters.
    """
    if not paths:
        raise InputError("optimizer.frozen: found every parameter, expected some that are trained")
    multipliers = learning_rate_multipliers(config, paths)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    parts.append(_by_group(config, steps, paths))
    if any(multiplier != 1.0 for multiplier in multipliers.values()):
        parts.append(_scale_each(multipliers))
    if config.l1:
        parts.append(_soft_threshold(config, steps, match(DECAY, paths, "weight-decay")))
    return optax.chain(*parts)


def _by_group(config: Optimizer, steps: int, paths: list[str]) -> optax.GradientTransformation:
    """The optimizer of each group of parameters; that of `config` alone where there are no groups."""
    rest = _optimizer(config, steps, paths, "optimizer")
    if not config.groups:
        return rest
    labels, made = dict.fromkeys(paths, "rest"), {"rest": rest}
    for number, group in reversed(list(enumerate(config.groups))):  # the first that matches wins
        where = f"optimizer.groups.{number}"
        labels |= dict.fromkeys(found_by((group.match,), paths, f"{where}.match"), where)
        own = replace(
            config,
            name=group.name or config.name,
            learning_rate=group.learning_rate or config.learning_rate,
            args=group.args if group.name else config.args | group.args,
        )
        made[where] = _optimizer(own, steps, paths, where)
    return optax.partition(made, labels)


def _optimizer(config: Optimizer, steps: int, paths: list[str], where: str) -> optax.GradientTransformation:
    """One optimizer with its schedule and decay mask; `where` is the field that errors name."""
    make = _find(config.name)
    arguments: dict[str, Any] = dict(config.args)
    accepted = inspect.signature(make).parameters
    if "weight_decay" in accepted:
        arguments.setdefault("weight_decay", config.weight_decay)
    mask_name = next((name for name in ("mask", "weight_decay_mask") if name in accepted), None)
    if mask_name and "weight_decay" in accepted:
        arguments[mask_name] = match(DECAY, paths, "weight-decay")
    unknown = [name for name in arguments if name not in accepted or name == "learning_rate"]
    if unknown:
        raise InputError(
            f"{where}.args: {config.name} takes no {unknown[0]!r}{near(repr(unknown[0]), map(repr, accepted))}; "
            f"it takes {', '.join(name for name in accepted if name != 'learning_rate')}"
        )
    for name, value in arguments.items():
        for names, limit in ARGUMENTS:
            if names.match(name) and isinstance(value, int | float) and not limit.allow(value):
                raise InputError(f"{where}.args.{name}: found {value:g}, expected {limit}")
    return make(learning_rate=schedule(config, steps), **arguments)


def _scale_each(multipliers: dict[str, float]) -> optax.GradientTransformation:
    def update(updates, params=None):
        del params
        return {path: update * multipliers[path] for path, update in updates.items()}

    return optax.stateless(update)


def _soft_threshold(config: Optimizer, steps: int, penalised: dict[str, bool]) -> optax.GradientTransformation:
    """The step of the L1 penalty after any optimizer's: p becomes sign(p) max(|p| - l1 * learning rate, 0) (Duchi and
    Singer 2009, "Efficient Online and Batch Learning Using Forward Backward Splitting")."""
    rate = schedule(config, steps)

    def update(updates, step, params=None):
        shrink = config.l1 * rate(step)

        def threshold(path: str, change: jax.Array) -> jax.Array:
            moved = params[path] + change
            return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - shrink, 0.0) - params[path]

        return {p: threshold(p, x) if penalised[p] else x for p, x in updates.items()}, step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _find(name: str):
    if name in UNFIT or name.startswith("schedule_free"):
        raise InputError(
            f"optimizer.name: {name} needs a training loop of its own (more than gradients); choose another"
        )
    for module in (optax, optax.contrib):
        make = getattr(module, name, None)
        if callable(make) and "learning_rate" in _parameters(make):
            return make
    names = {
        each
        for module in (optax, optax.contrib)
        for each in dir(module)
        if not each.startswith("_") and "learning_rate" in _parameters(getattr(module, each))
    }
    raise InputError(
        f"optimizer.name: found {name!r}, expected an optimizer of optax{near(repr(name), map(repr, names))}"
    )


def _parameters(make) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters if callable(make) else {}
    except (TypeError, ValueError):
        return {}
