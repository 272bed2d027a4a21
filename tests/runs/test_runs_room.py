"""What no device can hold is refused by its sizes, and nothing that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from models import make_spec

from srsjax.config import Batch, Model, TrainConfig
from srsjax.errors import InputError
from srsjax.model.bert import BertConfig
from srsjax.runs import room
from srsjax.runs.room import check_room, encoder_parameters

BERT_BASE = BertConfig(30522, 768, 12, 12, 3072, 512)
ABSURD = {
    "rows": (Batch(rows=10**8), BERT_BASE, "batch.rows: found 100,000,000 rows of 128 tokens, which take at least"),
    "tokens": (Batch(tokens=10**9), BERT_BASE, "batch.rows: found 32 rows of 1,000,000,000 tokens"),
    "candidates": (Batch(candidates=10**9), BERT_BASE, "and 1,000,000,000 candidates"),
    "width": (Batch(), BertConfig(30522, 10**7, 2, 1, 3072, 512), "model: found an encoder of"),
    "layers": (Batch(), replace(BERT_BASE, num_layers=10**6), "model: found an encoder of"),
}


@pytest.fixture
def machine(monkeypatch):
    """A device of 64 GiB; eight of them."""
    monkeypatch.setattr(room, "memory_of", lambda device: 64 * 2.0**30)


def spec_of(bert: BertConfig):
    return make_spec(Model(), bert)


@pytest.mark.parametrize("case", ABSURD)
def test_what_no_device_holds_is_refused(machine, case):
    batch, bert, message = ABSURD[case]
    with pytest.raises(InputError, match=message):
        check_room(TrainConfig(batch=batch), spec_of(bert))


def test_an_absurd_evaluation_batch_is_refused(machine):
    config = TrainConfig(batch=Batch(eval_rows=10**9))
    check_room(config, spec_of(BERT_BASE))
    with pytest.raises(InputError, match=r"batch\.eval_rows: found 1,000,000,000 rows"):
        check_room(config, spec_of(BERT_BASE), training=False)


def test_usual_sizes_are_not_refused(machine):
    for batch in (Batch(rows=4096, tokens=512), Batch(rows=65536, tokens=128, micro_batches=16)):
        for training in (True, False):
            check_room(TrainConfig(batch=batch), spec_of(BERT_BASE), training)
    assert encoder_parameters(BERT_BASE) == pytest.approx(109e6, rel=0.01)  # BERT-base


def test_nothing_is_refused_where_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(room, "memory_of", lambda device: 0.0)
    check_room(TrainConfig(batch=Batch(rows=10**8)), spec_of(BERT_BASE))


def test_the_memory_of_this_machine_is_known():
    import jax

    assert 2**30 < room.memory_of(jax.devices()[0]) < 2**50
