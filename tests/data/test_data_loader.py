"""Batches from a store: assembled as a plain reading of the layout says, complete, and the same after any restart."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from batches import make_layout, make_split
from hypothesis import given, settings
from hypothesis import strategies as st

from srsjax import config
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import Layout
from srsjax.data.batches.loader import STEPS_AT_ONCE, eval_batches, train_batches
from srsjax.data.store.arrays import Items, Split, open_store, write_manifest
from srsjax.data.store.ragged import Ragged
from srsjax.data.store.tokenizer import PairTemplate
from srsjax.errors import InputError

BERT = PairTemplate(prefix=(101,), between=(102,), suffix=(102,), candidate_type=1, separator=102)
ROBERTA = PairTemplate(prefix=(0,), between=(2, 2), suffix=(2,), candidate_type=0, separator=2)
PAD = 7


def make_store(seed: int = 0, impressions: int = 40, tasks: int = 2) -> tuple[Split, Items]:
    """Random impressions of 0 to 6 candidates, empty texts among them, some labels unknown for one or all tasks."""
    random = np.random.default_rng(seed)

    def texts(rows: int, longest: int) -> Ragged:
        lengths = random.integers(0, longest + 1, rows)
        return Ragged.from_lengths(random.integers(200, 900, lengths.sum()).astype(np.int32), lengths)

    counts = random.integers(0, 7, impressions)
    size = counts.sum()
    known = random.random((size, tasks)) > 0.3
    context, item = texts(impressions, 8), random.integers(0, 15, size)
    split = make_split(
        np.where(known, random.random((size, tasks)), 0),
        np.where(known, random.integers(1, 5, (size, tasks)), 0),
        counts,
        context=context,
        item=item,
        example=random.permutation(size),
        context_features={"device": random.integers(1, 5, impressions).astype(np.int32)},
        candidate_features={"position": random.random(size).astype(np.float32)},
    )
    items = Items(
        texts(15, 6),
        {"brand": np.arange(1, 16, dtype=np.int32), "image": random.random((15, 3)).astype(np.float32)},
    )
    return split, items


def train(store, *, rows=4, process=(0, 1), template=BERT, seed=0, whole=False, pair=True, start=None, **options):
    batch = {"tokens": 48, "candidates": 6, "micro_batches": 1, "workers": 0}
    run = {name: options.pop(name) for name in ("epochs", "max_steps") if name in options}
    batches = train_batches(
        *store,
        make_layout(start, template, PAD, pair),
        config.Batch(rows=rows, **(batch | options)),
        whole_impressions=whole,
        seed=seed,
        process_index=process[0],
        process_count=process[1],
        **run,
    )
    return batches


def leaves(item: tuple[PackedBatch, np.ndarray]) -> dict[str, np.ndarray]:
    """Every array of a batch by name."""
    batch, numbers = item
    named = batch._asdict()
    features = {f"{name}/{key}": array for name in named for key, array in _dict(named[name]).items()}
    return (
        {name: array for name, array in named.items() if not isinstance(array, dict)} | features | {"number": numbers}
    )


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def assert_same(left: list, right: list) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        one, other = leaves(one), leaves(other)
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            np.testing.assert_array_equal(one[name], other[name], name)


# ---------------------------------------------------------------------------------------------- assembly


def reference_row(numbers, split: Split, items: Items, layout: Layout, tokens: int) -> dict:
    """One row from the definition of the packed batch, token by token."""
    slots, template, shared = len(numbers), layout.template, layout.candidate_start is not None
    row = {name: [] for name in ("tokens", "positions", "token_types", "segment", "candidate")}
    row |= {"context_readout": [0] * slots, "readout": [0] * slots, "context_of": [0] * slots, "group": [-1] * slots}
    row |= {
        name: np.zeros((slots, *values.shape[1:]), np.float32) for name, values in features_of(split, items).items()
    }
    context, before = -1, None
    for slot, number in enumerate(numbers.tolist()):
        if number < 0:
            continue
        impression = next(i for i in range(len(split)) if split.candidates[i] <= number < split.candidates[i + 1])
        item = split.item[number]
        first, last = list(template.prefix), [*template.opening, *items.tokens[item].tolist(), *template.suffix]
        if layout.has_context:
            first += [*split.context[impression].tolist(), *template.between]
        if not shared or impression != before:
            context, before = context + 1, impression
            row["context_readout"][context] = len(row["tokens"])
            row["context_features/device"][context] = split.context_features["device"][impression]
            row["tokens"] += first
            row["positions"] += range(len(first))
            row["token_types"] += [0] * len(first)
            row["segment"] += [context + 1] * len(first)
            row["candidate"] += [0] * len(first)
        row["readout"][slot] = len(row["tokens"])
        row["context_of"][slot] = context
        row["group"][slot] = impression
        start = layout.candidate_start if shared else len(first)
        row["tokens"] += last
        row["positions"] += range(start, start + len(last))
        row["token_types"] += [template.candidate_type if layout.has_context else 0] * len(last)
        row["segment"] += [context + 1] * len(last)
        row["candidate"] += [slot + 1] * len(last)
        at = {"candidate_features/brand": item, "candidate_features/image": item}
        for name, values in features_of(split, items).items():
            if name != "context_features/device":
                row[name][slot] = values[at.get(name, number)]
    for name in ("tokens", "positions", "token_types", "segment", "candidate"):
        row[name] += [PAD if name == "tokens" else 0] * (tokens - len(row[name]))
    return row


def features_of(split: Split, items: Items) -> dict[str, np.ndarray]:
    return {
        "labels": split.labels,
        "weights": split.weights,
        "context_features/device": split.context_features["device"],
        "candidate_features/position": split.candidate_features["position"],
        "candidate_features/brand": items.features["brand"],
        "candidate_features/image": items.features["image"],
    }


@pytest.mark.parametrize(
    ("pair", "start", "apart"),
    [(True, None, False), (False, None, False), (True, 11, False), (True, 0, True)],
    ids=["pair", "single", "shared", "apart"],
)
@pytest.mark.parametrize("template", [BERT, ROBERTA], ids=["bert", "roberta"])
def test_rows_are_what_the_layout_says(template, pair, start, apart):
    split, items = make_store()
    seen, template = 0, template.apart() if apart else template
    layout = make_layout(start, template, PAD, pair)
    batches = eval_batches(split, items, layout, rows=4, tokens=48, candidates=6)
    for item in batches:
        arrays = leaves(item)
        for r, numbers in enumerate(arrays["number"]):
            expected = reference_row(numbers, split, items, layout, tokens=48)
            assert arrays.keys() == expected.keys() | {"number"}
            for name, value in expected.items():
                np.testing.assert_array_equal(arrays[name][r], value, name)
            seen += (numbers >= 0).sum()
    assert seen == len(split.labels)


def test_arrays_have_the_types_of_the_contract():
    arrays = leaves(next(train(make_store(), micro_batches=2)))
    floats = {"labels", "weights", "candidate_features/position", "candidate_features/image"}
    for name, array in arrays.items():
        expected = np.float32 if name in floats else np.int64 if name == "number" else np.int32
        assert array.dtype == expected, name
    assert arrays["tokens"].shape == (2, 2, 48)
    assert arrays["labels"].shape == (2, 2, 6, 2)
    assert arrays["candidate_features/image"].shape == (2, 2, 6, 3)


# ---------------------------------------------------------------------------------------------- training


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.integers(1, 3), st.booleans(), st.sampled_from([None, 10]), st.integers(1, 9))
def test_each_epoch_trains_each_labelled_candidate_once(seed, epochs, whole, start, rows):
    store = make_store(seed)
    batches = train(store, rows=rows, seed=seed, whole=whole, epochs=epochs, start=start)
    given_out = np.concatenate([numbers.reshape(-1) for _, numbers in batches])
    labelled = np.flatnonzero(store[0].weights.any(1)).tolist()
    assert Counter(given_out[given_out >= 0].tolist()) == dict.fromkeys(labelled, epochs)


def test_steps_and_epoch_ends():
    """Batches run over the ends of epochs; the end of an epoch is the step that holds its last row."""
    store = make_store()
    rows_of_epoch = train(store, rows=1).steps
    batches = train(store, rows=4, epochs=2.5)
    assert batches.steps == -(-round(2.5 * rows_of_epoch) // 4)
    assert batches.epoch_ends == [-(-rows_of_epoch // 4), -(-2 * rows_of_epoch // 4), batches.steps]
    assert len(list(batches)) == batches.steps

    stopped = train(store, rows=4, max_steps=3, epochs=9)
    assert (stopped.steps, stopped.epoch_ends) == (3, [3])
    assert_same(list(stopped), list(train(store, rows=4, epochs=9))[:3])


def test_rows_after_the_end_are_empty():
    batches = train(make_store(), rows=64)
    (batch, numbers) = next(batches)
    empty = (numbers < 0).all(-1)
    assert empty.any()
    assert not batch.weights[empty].any()
    assert (batch.tokens[empty] == PAD).all()
    assert (batch.group[empty] == -1).all()
    assert next(batches, None) is None


@pytest.mark.parametrize(("whole", "start"), [(True, None), (False, None), (False, 10)])
def test_hosts_together_make_the_batch_of_one_host(whole, start):
    store, options = make_store(), {"rows": 8, "micro_batches": 2, "whole": whole, "epochs": 1.5, "start": start}
    alone = list(train(store, **options))
    hosts = [train(store, **options, process=(p, 4)) for p in range(4)]
    for item in alone:
        parts = [leaves(next(host)) for host in hosts]
        for name, array in leaves(item).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], axis=1), array)
    assert [next(host, None) for host in hosts] == [None] * 4


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 1)])
def test_restored_batches_go_on_as_if_uninterrupted(before, after):
    """Stopped within the second and at the end of the third element of Grain's pipeline, and begun again by new batches
    with another number of worker processes."""
    store = make_store()
    expected = list(train(store, epochs=12))
    for stop in (STEPS_AT_ONCE + 3, 3 * STEPS_AT_ONCE):
        first = train(store, epochs=12, workers=before)
        assert_same([next(first) for _ in range(stop)], expected[:stop])
        first.close()
        second = train(store, epochs=12, workers=after)
        second.restore(first.state())
        assert_same(list(second), expected[stop:])
        assert second.state() == second.steps


def test_a_batch_does_not_depend_on_those_made_with_it():
    batches = train(make_store(), epochs=5, micro_batches=2)
    alone = [batches._source.batches(step, step + 1)[0] for step in range(batches.steps)]
    assert batches.steps > STEPS_AT_ONCE
    assert_same(list(batches), alone)


def test_restoring_goes_back_and_to_the_end():
    batches = train(make_store())
    expected = list(batches)
    batches.restore(1)
    assert_same(list(batches), expected[1:])
    batches.restore(batches.steps)
    assert list(batches) == []
    with pytest.raises(ValueError, match="cannot go on"):
        batches.restore(batches.steps + 1)


def test_other_seeds_give_other_batches():
    store = make_store()
    numbers = [np.concatenate([numbers.reshape(-1) for _, numbers in train(store, seed=seed)]) for seed in (0, 1)]
    assert not np.array_equal(*numbers)


def test_split_impressions_are_counted_and_keep_their_group():
    split, items = make_store()
    batches = train((split, items), rows=64, candidates=3, whole=True)
    labelled = np.add.reduceat(np.append(split.weights.any(1), 0), split.candidates[:-1]) * (
        np.diff(split.candidates) > 0
    )
    assert batches.split_impressions == (labelled > 3).sum() > 0
    batch, numbers = next(batches)
    filled = numbers >= 0
    np.testing.assert_array_equal(batch.group[filled], split.impression[numbers[filled]])


# ---------------------------------------------------------------------------------------------- evaluation


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3), st.integers(1, 7), st.integers(1, 3), st.integers(0, 6), st.sampled_from([None, 10]))
def test_evaluation_gives_every_candidate_once_for_any_rows_and_hosts(seed, rows, hosts, candidates, start):
    split, items = make_store(seed, impressions=12)
    given_out, lengths = [], set()
    for host in range(hosts):
        batches = eval_batches(
            split,
            items,
            make_layout(start, BERT, PAD),
            rows=rows * hosts,
            tokens=48,
            candidates=candidates,
            process_index=host,
            process_count=hosts,
        )
        lengths.add(len(batches))
        for batch, numbers in batches:
            assert batch.tokens.shape == (rows, 48)
            assert numbers.shape == (rows, batches.candidates)
            given_out.append(numbers[numbers >= 0])
    assert len(lengths) == 1
    assert np.array_equal(np.sort(np.concatenate(given_out)), np.arange(len(split.labels)))


def test_an_empty_split_has_no_evaluation_batches():
    split, items = make_store(impressions=0)
    assert list(eval_batches(split, items, make_layout(None, BERT, PAD), rows=2, tokens=48)) == []


# ---------------------------------------------------------------------------------------------- stores on disk


def write_store(folder, split: Split, items: Items) -> None:
    arrays = {
        "items/tokens.values": items.tokens.values,
        "items/tokens.offsets": items.tokens.offsets,
        "train/context.values": split.context.values,
        "train/context.offsets": split.context.offsets,
    }
    arrays |= {f"items/features/{name}": values for name, values in items.features.items()}
    arrays |= {f"train/context_features/{name}": values for name, values in split.context_features.items()}
    arrays |= {f"train/candidate_features/{name}": values for name, values in split.candidate_features.items()}
    names = ("candidates", "item", "labels", "weights", "example", "user")
    arrays |= {f"train/{name}": getattr(split, name) for name in names}
    for name, values in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", values)
    write_manifest(folder, {})


def test_worker_processes_map_the_store_instead_of_copying_it(tmp_path):
    """What is sent to a worker process does not grow with the token ids of the store."""
    split, items = make_store()
    write_store(tmp_path, split, items)
    store = open_store(tmp_path)
    batches = train((store.split("train"), store.items))
    assert_same(list(batches), list(train((split, items))))

    sent = pickle.dumps(batches._source)
    assert split.context.values.tobytes() not in sent
    received = pickle.loads(sent)
    assert isinstance(received.assembler.split.context.values, np.memmap)
    made = [batch for element in range(len(received)) for batch in received[element]]
    assert_same(made, list(train((split, items))))


# ---------------------------------------------------------------------------------------------- wrong settings


def test_wrong_settings_are_named():
    store = make_store()
    with pytest.raises(InputError, match=r"batch\.rows is 6, expected a multiple of 4 .* set batch\.rows to 8"):
        train(store, rows=6, micro_batches=2, process=(0, 2))
    with pytest.raises(InputError, match=r"batch\.tokens is 10, but the longest pair has 1\d tokens"):
        train(store, tokens=10)
    with pytest.raises(InputError, match=r"batch\.eval_rows is 3, expected a multiple of the 2 hosts"):
        eval_batches(*store, make_layout(None, BERT, PAD), rows=3, tokens=48, process_count=2)


def test_a_training_split_without_labels_is_named():
    split, items = make_store()
    split.weights[:] = 0
    with pytest.raises(InputError, match="none with a label of weight above 0"):
        train((split, items))
