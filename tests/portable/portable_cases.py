"""Models with random parameters and their `Scorer`, for what compares another form of a model with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import numpy as np

from srsjax.config import Batch, Data, Mesh, Model, Schema, TrainConfig
from srsjax.data.preparing.catalogue import read_catalogues
from srsjax.data.preparing.encode import Encoder, refuse
from srsjax.data.preparing.sources import Sources
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.store.tokenizer import TextEncoder, train_tokenizer
from srsjax.inference.scorer import Scorer
from srsjax.model.hf_card import Described
from srsjax.runs.session import open_session
from srsjax.runs.shapes import batch_shape
from srsjax.runs.spec import layout_of, make_spec

WORDS = "red blue green wool coat shoe shoes winter rain norvik simple warm for the a of"


@dataclass(frozen=True)
class Made:
    """A model, and what its folders are written of."""

    scorer: Scorer
    params: dict[str, np.ndarray]
    about: Described
    fitted: Fitted


def bert_text() -> TextEncoder:
    """A tokenizer with BERT's special tokens."""
    return train_tokenizer([WORDS] * 5, 400, lowercase=True)


def made(
    text: TextEncoder,
    schema: Schema,
    data: Data = Data(),
    fitted: Fitted = Fitted(),
    tokens: int = 64,
    **model,
) -> Made:
    """A small model with parameters no two of which are alike; `model` are fields of `Model`."""
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "max_positions": 64}
    model = sizes | {"dtype": "float32", "attention": "xla", "hidden_dropout": 0.0} | model
    batch = Batch(rows=2, tokens=tokens, candidates=8)
    config = TrainConfig(schema=schema, data=data, model=Model(**model), mesh=Mesh(1), batch=batch)
    spec = replace(make_spec(config, text, {"fitted": fitted.to_json()}), candidates=8)
    session = open_session(config, spec, devices=jax.devices()[:1], training=False)
    params = random_params(session.shapes)
    sources = Sources(schema, data)
    encoder = Encoder(sources, read_catalogues(sources, refuse, splitting=False), text, fitted)
    layout = layout_of(spec, text)
    scorer = Scorer(config, session, params, encoder, batch_shape(config, spec, layout, session.mesh))
    return Made(scorer, params, Described("shop", "runs/shop", spec, schema, text, layout, fitted.fills), fitted)


def random_params(shapes) -> dict[str, np.ndarray]:
    """Parameters of order 0.2; the head's spread keeps scores away from 0 and 1."""
    rng = np.random.default_rng(0)
    centre = {path: 1.0 if path.endswith("norm/scale") else 0.0 for path in shapes}
    return {
        path: rng.normal(centre[path], 0.7 if path.startswith("head/dense/kernel") else 0.2, x.shape).astype(np.float32)
        for path, x in shapes.items()
    }
