"""A small click problem in memory, with everything a step or a run needs around it: the fixture `problem`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from batches import layout_for, make_split
from models import make_spec

from srsjax.config import Batch, Mesh, Model, Optimizer, Schema, Task, TrainConfig
from srsjax.data.batches.loader import train_batches
from srsjax.data.inputs import InputSpec
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.model.spec import encoder_config
from srsjax.objectives import losses
from srsjax.runs.session import initial_state, open_session
from srsjax.runs.steps import training_step
from srsjax.runs.tables import optimizer_of

VOCAB = 256
# Wide enough that its biases, whole on every device, stay under the 2 % of bytes allowed with fsdp.
SMALL = Model(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    intermediate_size=128,
    max_positions=64,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    head_dropout=0.0,
)


def clicks(impressions: int, seed: int = 0) -> tuple[Split, Items]:
    """Impressions of 1 to 5 candidates; a candidate is clicked more often where its first token is the context's."""
    rng = np.random.default_rng(seed)
    items = Items(Ragged.from_rows([rng.integers(5, VOCAB, rng.integers(2, 8)) for _ in range(50)], np.int32))
    counts = rng.integers(1, 6, impressions)
    candidates = np.concatenate([[0], np.cumsum(counts)])
    m = int(candidates[-1])
    item = rng.integers(0, 50, m)
    context = [rng.integers(5, VOCAB, rng.integers(1, 9)) for _ in range(impressions)]
    for i in range(impressions):
        context[i][0] = items.tokens[item[candidates[i]]][0]
    first = np.repeat(np.array([tokens[0] for tokens in context]), counts)
    match = first == np.array([items.tokens[i][0] for i in item])
    labels = rng.random((m, 1)) < np.where(match, 0.8, 0.2)[:, None]
    split = make_split(
        labels,
        rng.uniform(0.5, 2.0, (m, 1)),
        counts,
        context=Ragged.from_rows(context, np.int32),
        item=item,
        user=np.arange(impressions) % 7,
    )
    return split, items


def make_problem(
    mesh: Mesh | None = None,
    devices=None,
    micro_batches: int = 1,
    task: Task = Task(softmax=0.3),
    model: Model = SMALL,
    optimizer: Optimizer = Optimizer(learning_rate=1e-3, layer_decay=0.9),
    rows: int = 32,
    max_steps: int = 6,
    seed: int = 0,
    features: tuple[InputSpec, ...] = (),
) -> SimpleNamespace:
    """A jitted step, a fresh state and batches."""
    config = TrainConfig(
        schema=Schema(tasks=(task,)),
        model=model,
        mesh=mesh or Mesh(),
        batch=Batch(rows=rows, tokens=64, micro_batches=micro_batches),
        optimizer=optimizer,
        seed=seed,
    )
    session = open_session(config, make_spec(model, encoder_config(model, VOCAB), features=features), devices)
    split, items = clicks(600)
    # Contexts have 8 tokens at most; in all but `cross` candidates start behind the longest.
    layout = layout_for(model.interaction, 10)
    batches = train_batches(
        split,
        items,
        layout,
        config.batch,
        whole_impressions=losses.needs_whole_impressions((task,)),
        seed=seed,
        max_steps=max_steps,
    )
    transform = optimizer_of(optimizer, batches.steps, list(session.trained(session.shapes)), session.spec)
    state = initial_state(session, transform, seed)
    step = training_step(config, session, transform)
    return SimpleNamespace(
        config=config,
        session=session,
        split=split,
        items=items,
        layout=layout,
        batches=batches,
        state=state,
        step=step,
    )
