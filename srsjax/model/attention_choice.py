"""Which attention a run uses: the backends its devices have, each proven against the reference, then timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.errors import InputError
from srsjax.model.attention import Attend, Visibility, attend, reference
from srsjax.model.attention_windows import Windows, cut, plain
from srsjax.model.interactions import INTERACTIONS

PLATFORM = {"splash": "tpu", "cudnn": "gpu"}
"""What each backend besides plain XLA runs on."""

TOLERANCE = 0.02
"""Largest difference from the reference, as a share of the reference's largest value. bfloat16 keeps 8 bits: sums of
rounded products stay within 1 %; a query that sees a stranger's keys is wrong by 10 % and more somewhere."""

NO_DROPOUT = "it has no attention dropout, and model.attention_dropout is {}"

CALLS = 10
"""Calls of one timing, one after the other inside a single program: a single one would time its dispatch."""


class Choice(NamedTuple):
    """The attention of a run."""

    name: str
    attend: Attend
    said: str
    """One line for a person: what was chosen and why."""


NONE = Choice("none", attend, "attention: none, for the schema has no text")
"""For a model without an encoder."""


@dataclass(frozen=True)
class Job:
    """What the attention of a run has to do."""

    mesh: jax.sharding.Mesh
    interaction: str
    rows: int
    """Of a micro-batch, over all devices."""
    tokens: int
    heads: int
    head_dim: int
    dtype: jnp.dtype
    dropout: float
    """Of attention probabilities; 0 where nothing is trained."""
    training: bool
    """Whether gradients are taken."""
    longest: int = 0
    """Most tokens of a part that sees itself alone; 0 where there is none, or where it is unknown."""

    @property
    def visibilities(self) -> tuple[str, ...]:
        """The visibilities that some layer has, the widest last."""
        return INTERACTIONS[self.interaction].visibilities


def choose(wanted: str, job: Job, backends: dict[str, Attend] | None = None) -> Choice:
    """The backend named `wanted` or, with `auto`, the fastest that is proven for the job on the devices there are.

    Every process of a run calls this and gets the same answer: proofs and timings are programs over the whole mesh,
    what they compute is the same on every host, and the times are those of process 0.

    Args:
      wanted: `auto`, `xla`, `splash` or `cudnn`.
      job: what it is for.
      backends: instead of those of the devices.

    Raises:
      InputError: `wanted` does not run on these devices, or gives wrong results there.
    """
    backends = backends or available(job)
    if wanted not in ("auto", *backends):
        raise _absent(wanted, job)
    reasons = {name: refusal(backend, job) for name, backend in backends.items() if wanted in ("auto", name)}
    if reasons.get(wanted):
        raise InputError(f"model.attention {wanted}: {reasons[wanted]}; set model.attention auto")
    proven = [name for name, reason in reasons.items() if reason is None]
    refused = "".join(f" ({name} refused: {reason})" for name, reason in reasons.items() if reason)
    if len(proven) == 1:
        backend = backends[proven[0]]
        return Choice(proven[0], backend, f"attention: {proven[0]}{_windows(backend, job)}{refused}")
    times = {name: seconds(backends[name], job) for name in proven}
    best = min(times, key=lambda name: times[name])
    compared = ", ".join(f"{name} {1e3 * taken:.2f} ms" for name, taken in times.items())
    return Choice(best, backends[best], f"attention: {compared} a layer -> {best}{refused}")


def unmeasured(wanted: str, job: Job) -> Choice:
    """The backend for devices that cannot run anything, those of a topology: plain XLA, or the one that is named.

    Raises InputError where the devices do not have it, or where it lacks what the job needs.
    """
    if wanted in ("auto", "xla"):
        why = " (auto: nothing can be timed here)" if wanted == "auto" else ""
        backend = plain(job.tokens, job.longest)
        return Choice("xla", backend, f"attention: xla{_windows(backend, job)}{why}")
    backends = available(job)
    if wanted not in backends:
        raise _absent(wanted, job)
    if job.training and job.dropout > 0:
        raise InputError(f"model.attention {wanted}: {NO_DROPOUT.format(job.dropout)}; set model.attention auto")
    return Choice(wanted, backends[wanted], f"attention: {wanted} (named; not compared with the reference here)")


def _absent(wanted: str, job: Job) -> InputError:
    """What to raise for a backend that the devices do not have."""
    platform = job.mesh.devices.flat[0].platform
    return InputError(
        f"model.attention {wanted}: found {platform} devices, expected {PLATFORM[wanted]}; set model.attention auto"
    )


def _windows(backend: Attend, job: Job) -> str:
    """What to add where rows are computed in windows."""
    return f" in {len(cut(job.tokens, job.longest))} windows a row" if isinstance(backend, Windows) else ""


def available(job: Job) -> dict[str, Attend]:
    """The backends for the devices of a job, plain XLA first."""
    xla, mesh = plain(job.tokens, job.longest), job.mesh
    match mesh.devices.flat[0].platform:  # imported here: a fifth of a second of every start
        case "tpu":
            from srsjax.model.attention_tpu import Splash

            return {"xla": xla, "splash": Splash(mesh)}
        case "gpu":
            from srsjax.model.attention_gpu import Cudnn

            return {"xla": xla, "cudnn": Cudnn(mesh)}
        case _:
            return {"xla": xla}


def refusal(backend: Attend, job: Job) -> str | None:
    """Why `backend` may not be used for the job; None where it may. Plain XLA needs no proof."""
    if backend is attend or isinstance(backend, Windows):
        return None
    if job.training and job.dropout > 0:
        return NO_DROPOUT.format(job.dropout)
    return next(filter(None, (disproof(backend, job, interaction) for interaction in job.visibilities)), None)


def disproof(backend: Attend, job: Job, interaction: str) -> str | None:
    """How `backend` differs from the reference on packed rows, or why it did not run; None where it agrees.

    Values and, in training, gradients of query, key and value are compared for rows of several impressions with
    padding, on the devices, in the shape and the dtype of the job. Padding may get any finite numbers.
    """
    rows = 2 * job.mesh.shape["data"] * job.mesh.shape["fsdp"]
    operands, visibility = _operands(job, rows, interaction)
    names = ("values at padding", "values", "gradients of query", "gradients of key", "gradients of value")

    def results(function: Attend, query, key, value, towards) -> list[jax.Array]:
        """What `names` says, zeros for finite values at padding; without gradients where nothing is trained."""

        def product(*operands):
            out = function(*operands, visibility).astype(jnp.float32)
            real = visibility.query[:, :, None, None] != 0
            values = jnp.where(real, out, 0)
            return (values * towards).sum(), (jnp.where(real | jnp.isfinite(out), 0, jnp.nan), values)

        if not job.training:
            return [*product(query, key, value)[1]]
        (_, values), gradients = jax.value_and_grad(product, (0, 1, 2), has_aux=True)(query, key, value)
        return [*values, *gradients]

    def compare(*operands) -> list[jax.Array]:
        """The largest difference of each, as a share of the largest value; NaN where one is not finite."""
        shares = []
        for found, right in zip(results(backend, *operands), results(reference, *operands), strict=True):
            right = right.astype(jnp.float32)
            difference = jnp.abs(found.astype(jnp.float32) - right)
            share = difference.max() / jnp.maximum(jnp.abs(right).max(), 1e-30)
            # XLA's maximum drops NaN on CPU.
            shares.append(jnp.where(jnp.isfinite(difference).all(), share, jnp.nan))
        return shares

    try:
        shares = jax.jit(compare, out_shardings=NamedSharding(job.mesh, P()))(*operands)
    except Exception as error:  # whatever a kernel or its compiler raises is the reason not to use it
        return f"it does not run here: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    for name, share in zip(names, map(float, shares), strict=False):
        if not share <= TOLERANCE:
            differ = f"differ from the reference by {share:.1%} of the largest, expected at most {TOLERANCE:.0%}"
            return f"with {interaction} visibility its {name} {'are not finite' if np.isnan(share) else differ}"
    return None


def seconds(backend: Attend, job: Job) -> float:
    """Time of one layer's attention, with its gradients in training: the best of three, measured by process 0."""
    operands, visibility = _operands(job, job.rows, job.visibilities[-1])

    def call(operands, towards):
        """Operands of the next call: results that depend on all of this one's work."""
        if not job.training:
            return backend(*operands, visibility), *operands[1:]
        out, gradients = jax.vjp(lambda *operands: backend(*operands, visibility), *operands)
        return gradients(towards.astype(out.dtype))

    def calls(query, key, value, towards):
        return jax.lax.fori_loop(0, CALLS, lambda _, now: call(now, towards), (query, key, value))

    run = jax.jit(calls)
    jax.block_until_ready(run(*operands))
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run(*operands))
        taken.append((time.perf_counter() - start) / CALLS)
    return float(multihost_utils.broadcast_one_to_all(np.float32(min(taken))))


def packed_ids(rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """`segment` and `candidate` [rows, tokens] int32 of rows packed with impressions of one to three candidates, some
    slots of padding between and after them."""
    random = np.random.default_rng(0)
    segment, candidate = np.zeros((2, rows, tokens), np.int32)
    for r in range(rows):
        at = impressions = candidates = 0
        while at < tokens - tokens // 16:
            impressions += 1
            for part in range(random.integers(2, 5)):
                end = at + int(random.integers(1, 1 + max(1, tokens // 8)))
                segment[r, at:end] = impressions
                candidates += part > 0
                candidate[r, at:end] = candidates if part else 0
                at = end
            at += int(random.integers(0, 3))
        segment[r, tokens - tokens // 16 :] = candidate[r, tokens - tokens // 16 :] = 0
    return segment, candidate


def _operands(job: Job, rows: int, interaction: str) -> tuple[list[jax.Array], Visibility]:
    """Query, key, value and a cotangent [rows, L, H, Dh] on the mesh, and the visibility of packed rows."""
    segment, candidate = packed_ids(rows, job.tokens)
    visibility: Visibility = getattr(Visibility, interaction)(segment, candidate)
    visibility = jax.tree.map(np.asarray, visibility)  # the same on every process, and small: a constant of the program
    shape = (rows, job.tokens, job.heads, job.head_dim)

    def draw():
        keys = jax.random.split(jax.random.key(0), 4)
        *operands, towards = (jax.random.normal(key, shape) for key in keys)
        return [x.astype(job.dtype) for x in operands] + [towards]

    heads = None if job.heads % job.mesh.shape["tensor"] else "tensor"
    return jax.jit(draw, out_shardings=NamedSharding(job.mesh, P(("data", "fsdp"), None, heads)))(), visibility
