"""The shapes that batches are cut to: few, the same logits, and no larger than what is in them asks for."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import layout_for
from hypothesis import given
from hypothesis import strategies as st
from small_problem import make_problem

from srsjax.config import Batch, Mesh
from srsjax.data.batches.layout import BatchShape
from srsjax.runs.evaluation import predict_split
from srsjax.runs.session import for_scoring, open_session
from srsjax.runs.shapes import evaluation_rows, request_shapes, row_counts
from srsjax.runs.sharding import make_mesh


@given(st.integers(1, 300), st.integers(1, 16))
def test_row_counts_waste_at_most_a_third(rows, divisor):
    counts = row_counts(rows * divisor, divisor)
    assert counts == sorted(set(counts)) and counts[-1] == rows * divisor
    assert all(count % divisor == 0 for count in counts)
    # 2 rows of 3, 3 of 4, 4 of 6, ...: what is computed is less than half more than what is asked for.
    pairs = itertools.pairwise(counts)
    assert all(after <= 2 * divisor or after * 2 <= before * 3 for before, after in pairs)


def test_an_evaluation_batch_fits_in_the_caches_of_cpus():
    problem = make_problem()
    spec, mesh = problem.session.spec, make_mesh(Mesh(), jax.devices()[:1])
    rows = lambda mesh=mesh, **batch: evaluation_rows(  # noqa: E731
        replace(problem.config, batch=Batch(tokens=64, **batch)), spec, mesh
    )
    assert rows(rows=64) == 16 and rows(rows=8) == 8  # 1,024 tokens, and never more than training's
    assert rows(rows=64, eval_rows=40) == 40  # as asked for
    assert rows(rows=512, mesh=make_mesh(Mesh())) == 16 * jax.device_count()
    assert evaluation_rows(replace(problem.config, batch=Batch(rows=64)), replace(spec, reads_text=False), mesh) == 64


@pytest.fixture(scope="module")
def scored():
    """A model on one device, and a function from numbers of impressions to the shapes computed and the logits."""
    problem = make_problem(devices=jax.devices()[:1])
    shape = BatchShape(layout_for("cross", 10), 64, 8, eval_rows=16)
    params = jax.device_get(problem.state.params)

    def run(impressions: int, shapes) -> tuple[list[tuple[int, ...]], np.ndarray]:
        seen = []

        def step(params, batch):
            seen.append(batch.tokens.shape)
            return problem.session.predict_step(params, batch)

        split = problem.split.take(np.arange(impressions))
        mesh = problem.session.mesh
        return seen, predict_split(step, params, split, problem.items, shape, mesh, shapes=shapes)

    return run, request_shapes(shape, problem.session.mesh, short=True)


def test_requests_are_cut_to_what_they_need(scored):
    run, shapes = scored
    assert shapes == [(1, 16), (1, 32), (1, 64), (2, 64), (3, 64), (4, 64), (6, 64), (8, 64), (12, 64), (16, 64)]
    sizes = []
    for impressions in (1, 2, 3, 20, 60, 200):
        seen, logits = run(impressions, shapes)
        whole, expected = run(impressions, ())
        assert set(seen) <= {*shapes} and set(whole) == {(16, 64)} and len(seen) == len(whole)
        np.testing.assert_allclose(logits, expected, atol=1e-5)  # float32: products of other shapes
        sizes.append(sum(rows * tokens for rows, tokens in seen))
    assert sizes == sorted(sizes) and sizes[0] < 64  # a short impression pays for less than a row


def test_kernels_in_the_compute_dtype_give_the_same_logits_bit_for_bit():
    problem = make_problem(devices=jax.devices()[:1])
    config = replace(problem.config, model=replace(problem.config.model, dtype="bfloat16"))
    session = open_session(config, problem.session.spec, jax.devices()[:1], training=False)
    params = jax.device_get(problem.state.params)
    cast, batch = for_scoring(session, params), jax.tree.map(lambda x: x[0], problem.batches.first())
    halved = [path for path in params if cast[path].dtype != params[path].dtype]
    assert len(halved) == 4 * 2 and all(cast[path].nbytes * 2 == params[path].nbytes for path in halved)
    np.testing.assert_array_equal(session.predict_step(cast, batch), session.predict_step(params, batch))
