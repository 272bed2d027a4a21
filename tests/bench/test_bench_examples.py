"""The two sides of the results table read the same sequences, labels, weights and splits."""

from dataclasses import replace

import numpy as np
import pytest
from bench_examples import load_config, read_examples

from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.tokenizer import load_tokenizer


@pytest.mark.parametrize("name", ["upworthy", "reviews", "esci", "product_matching"])
def test_the_store_holds_what_the_peer_reads(name, tmp_path, data_sets, minilm):
    """All labels, weights and splits, and every seventh sequence: tokenised by transformers there, by srsjax here."""
    torch_finetune = pytest.importorskip("torch_finetune", reason="the peer needs torch", exc_type=ImportError)
    config = load_config(name)
    config = replace(config, data=replace(config.data, store=str(tmp_path)))
    store = prepare(config)
    examples = read_examples(config)
    encoded = torch_finetune.encode(config, examples)
    template = load_tokenizer(str(store.folder / "tokenizer")).template
    for split in ("train", "valid", "test"):
        stored = store.split(split)
        assert np.array_equal(np.sort(stored.example), examples.rows(split))
        assert np.allclose(stored.labels[:, 0], examples.labels[stored.example], atol=1e-7)
        assert np.array_equal(stored.weights[:, 0], examples.weights[stored.example])
        contexts = stored.impression
        for m, row in list(enumerate(stored.example))[::7]:
            sequence = (*template.prefix, *store.items.tokens[stored.item[m]], *template.suffix)
            if config.schema.context:
                sequence = (*template.prefix, *stored.context[contexts[m]], *template.between, *sequence[1:])
            assert tuple(encoded.tokens[row]) == sequence
