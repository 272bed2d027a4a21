"""Rows of prepared texts, many of them cut: parts are as long as attention was told, logits those of whole rows."""

from __future__ import annotations

import csv
from dataclasses import replace

import jax
import numpy as np
import pytest

from srsjax.config import Batch, Data, Mesh, Model, Schema, Split, Table, Task, Text, Tokenizer, TrainConfig
from srsjax.data.batches.layout import check_lengths
from srsjax.data.batches.loader import eval_batches
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.model.attention import Visibility
from srsjax.model.attention_windows import Windows
from srsjax.runs.session import open_session
from srsjax.runs.sharding import put_batch
from srsjax.runs.spec import layout_of, make_spec

WORDS = ["red", "blue", "coat", "hat", "wool", "silk"]
MODEL = Model(hidden_size=32, num_layers=3, num_heads=2, intermediate_size=64, max_positions=64)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A config whose budgets cut most texts, and its store."""
    folder, random = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request", "query", "title", "click", "part"])
        for row in range(300):
            texts = (" ".join(np.random.default_rng(seed).choice(WORDS, 1 + seed % 30)) for seed in (row // 3, row))
            writer.writerow([f"r{row // 3}", *texts, random.integers(0, 2), ("train", "valid", "test")[row // 3 % 3]])
    config = TrainConfig(
        schema=Schema(
            context=(Text("query", max_tokens=6),),
            candidate=(Text("title", max_tokens=6), Text("again", column="title", max_tokens=2)),
            tasks=(Task("click"),),
        ),
        data=Data(
            log=Table(str(folder / "log.csv")),
            split=Split(by="column", column="part"),
            group_by="request",
            store=str(folder / "stores"),
        ),
        tokenizer=Tokenizer(vocab_size=200),
        model=MODEL,
        batch=Batch(rows=4, tokens=128),
    )
    return config, prepare(config, log=lambda text: None)


@pytest.mark.parametrize(
    ("interaction", "mesh"), [("cross", Mesh(1)), ("split", Mesh(1)), ("towers", Mesh(1)), ("cross", Mesh(4, 1, 2))]
)
def test_parts_are_as_long_as_said_and_logits_those_of_whole_rows(prepared, interaction, mesh):
    config, store = prepared
    config = replace(config, mesh=mesh)
    readout = "mean" if interaction == "towers" else "pooled"
    config = replace(config, model=replace(config.model, interaction=interaction, readout=readout))
    text = load_tokenizer(str(store.folder / "tokenizer"))
    spec = make_spec(config, text)
    layout, longest = layout_of(spec, text), spec.longest_part
    check_lengths(config, layout, spec.encoder.longest)
    devices = jax.devices()[: mesh.data * mesh.tensor]
    session, whole = (open_session(config, replace(spec, longest_part=most), devices) for most in (longest, 0))
    assert session.attention.attend == Windows(longest)
    params, found = jax.jit(session.init, out_shardings=session.shardings)(jax.random.key(0)), 0
    split = store.split("train")
    for batch, numbers in eval_batches(split, store.items, layout, rows=4, tokens=128, candidates=0):
        ids = getattr(Visibility, "cross" if interaction == "cross" else "towers")(batch.segment, batch.candidate).key
        found = max(found, *(np.unique(row[row != 0], return_counts=True)[1].max(initial=0) for row in ids))
        placed = put_batch(session.mesh, batch, row_axis=0)
        logits = [np.asarray(one.predict_step(params, placed))[numbers >= 0] for one in (session, whole)]
        np.testing.assert_allclose(*logits, atol=1e-5)  # of order 0.1; sums of float32 in another order
    assert found == longest


def test_shared_rows_have_no_part_alone(prepared):
    config, store = prepared
    config = replace(config, model=replace(config.model, interaction="shared"))
    assert make_spec(config, load_tokenizer(str(store.folder / "tokenizer"))).longest_part == 0
