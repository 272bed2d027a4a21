"""Backends that are wrong on purpose are refused with the reason; of those that are right the fastest is chosen."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.config import Mesh
from srsjax.errors import InputError
from srsjax.model.attention import Visibility, attend
from srsjax.model.attention_choice import Job, available, choose, packed_ids, refusal, unmeasured
from srsjax.model.attention_gpu import Cudnn
from srsjax.model.attention_tpu import Splash
from srsjax.model.attention_windows import Windows
from srsjax.runs.sharding import make_mesh


@functools.cache
def job(**changes) -> Job:
    mesh = make_mesh(Mesh(1), jax.devices()[:1])
    plain = Job(mesh, "shared", 4, 64, 2, 16, jnp.dtype("bfloat16"), dropout=0.0, training=True)
    return replace(plain, **changes)


def right(*arguments):
    """Another function than `attend`, so that it has to be proven."""
    return attend(*arguments)


def ignores_ids(query, key, value, visibility, *dropout):
    everything = Visibility(*(jnp.ones_like(ids) for ids in visibility[:2]))
    return attend(query, key, value, everything)


def sees_its_whole_impression(query, key, value, visibility, *dropout):
    """As if candidates of one context were one sequence."""
    segment, _ = packed_ids(*query.shape[:2])
    return attend(query, key, value, Visibility(segment, segment))


def sees_padding(query, key, value, visibility, *dropout):
    """Padding counts as part of the first part in its row, a part with id 1."""
    return attend(query, key, value, visibility._replace(key=jnp.where(visibility.key == 0, 1, visibility.key)))


def does_not_see_the_context(query, key, value, visibility, *dropout):
    return attend(query, key, value, Visibility(visibility.query, visibility.key))


def wrong_gradient(query, key, value, visibility, *dropout):
    return attend(query, jax.lax.stop_gradient(key), value, visibility)


def nan_at_padding(query, key, value, visibility, *dropout):
    out = attend(query, key, value, visibility)
    return jnp.where(visibility.query[:, :, None, None] == 0, jnp.nan, out)


def not_here(*arguments):
    raise RuntimeError("no such kernel\nand much more")


@pytest.mark.parametrize(("interaction", "training"), [("split", True), ("cross", True), ("split", False)])
def test_what_agrees_with_the_reference_is_proven(interaction, training):
    assert refusal(right, job(interaction=interaction, training=training)) is None


@pytest.mark.parametrize("interaction", ["cross", "shared", "split", "towers"])
def test_attention_across_examples_is_refused(interaction):
    for dtype in ("bfloat16", "float32"):
        reason = refusal(ignores_ids, job(interaction=interaction, dtype=jnp.dtype(dtype), training=False))
        assert "visibility its values differ from the reference by" in reason


@pytest.mark.parametrize(
    ("backend", "interaction", "reason"),
    [
        (sees_its_whole_impression, "shared", "with shared visibility its values differ"),
        (sees_its_whole_impression, "towers", "with towers visibility its values differ"),
        (sees_padding, "cross", "with cross visibility its values differ"),
        (does_not_see_the_context, "split", "with shared visibility its values differ"),
        (wrong_gradient, "cross", "its gradients of key differ from the reference by 100.0%"),
        (nan_at_padding, "cross", "its values at padding are not finite"),
        (not_here, "cross", "it does not run here: RuntimeError: no such kernel"),
    ],
)
def test_a_wrong_backend_is_refused_with_the_reason(backend, interaction, reason):
    assert reason in refusal(backend, job(interaction=interaction))


def test_splash_is_proven_by_its_interpreted_program():
    mesh = make_mesh(Mesh(2, 1, 2), jax.devices()[:4])
    assert refusal(Splash(mesh, interpret=True), job(mesh=mesh, interaction="split", training=False)) is None


def test_a_kernel_without_its_device_is_refused():
    mesh = job().mesh
    assert "it does not run here" in refusal(Splash(mesh), job())
    assert "it does not run here" in refusal(Cudnn(mesh), job())


def test_without_dropout_of_its_own_a_backend_does_not_train_with_it():
    reason = "it has no attention dropout, and model.attention_dropout is 0.1"
    assert refusal(right, job(dropout=0.1)) == reason
    assert refusal(right, job(dropout=0.1, training=False)) is None
    assert choose("auto", job(dropout=0.1), {"xla": attend, "splash": right})[::2] == (
        "xla",
        f"attention: xla (splash refused: {reason})",
    )


def slow(query, key, value, visibility, *dropout):
    def wait(x):
        time.sleep(0.01)
        return x

    return attend(jax.pure_callback(wait, jax.typeof(query), query), key, value, visibility)


def test_the_fastest_proven_backend_is_chosen():
    scoring = job(training=False)
    choice = choose("auto", scoring, {"xla": slow, "splash": right, "cudnn": ignores_ids})
    assert (choice.name, choice.attend) == ("splash", right)
    assert choice.said.startswith("attention: xla 1") and " ms a layer -> splash (cudnn refused: with" in choice.said
    assert choose("auto", scoring, {"xla": attend, "splash": slow}).name == "xla"
    assert choose("splash", scoring, {"xla": attend, "splash": slow}).said == "attention: splash"


def test_a_backend_asked_for_by_name_is_used_or_refused():
    assert available(job()) == {"xla": attend}
    for wanted in ("auto", "xla"):
        assert choose(wanted, job()) == ("xla", attend, "attention: xla")
    with pytest.raises(InputError, match=r"splash: found cpu devices, expected tpu; set model.attention auto$"):
        choose("splash", job())
    with pytest.raises(InputError, match=r"attention cudnn: with shared visibility .* set model.attention auto$"):
        choose("cudnn", job(), {"xla": attend, "cudnn": ignores_ids})


def test_rows_of_short_parts_are_computed_in_windows_and_said_so():
    short = job(interaction="cross", tokens=192, longest=42, dropout=0.1)
    for choice in (choose("auto", short), choose("xla", short), unmeasured("auto", short)):
        assert choice.attend == Windows(42) and choice.said.startswith("attention: xla in 2 windows a row")
    assert choose("auto", job(tokens=192, longest=120)) == ("xla", attend, "attention: xla")


def test_packed_ids_hold_several_impressions_a_row_and_padding():
    segment, candidate = packed_ids(4, 128)
    assert ((segment > 0) | (candidate == 0)).all()
    for row, parts in zip(segment, candidate, strict=True):
        assert row.max() >= 2 and (row[-8:] == 0).all() and parts.max() > row.max()
        assert set(np.unique(row)) == set(range(row.max() + 1))


def test_without_devices_to_measure_plain_xla_is_taken_unless_one_is_named(monkeypatch):
    assert unmeasured("auto", job()).attend is attend
    assert "nothing can be timed" in unmeasured("auto", job()).said
    with pytest.raises(InputError, match="found cpu devices, expected tpu"):
        unmeasured("splash", job())
    monkeypatch.setattr("srsjax.model.attention_choice.available", lambda job: {"xla": attend, "splash": right})
    named = unmeasured("splash", job())
    assert (named.name, named.attend) == ("splash", right) and "not compared" in named.said
    with pytest.raises(InputError, match=r"no attention dropout, and model.attention_dropout is 0\.1"):
        unmeasured("splash", job(dropout=0.1))
