"""The spec of a run's model, from its config and the prepared store."""

from __future__ import annotations

from srsjax.config import TrainConfig
from srsjax.data.batches.layout import Layout, make_layout, most_tokens
from srsjax.data.kinds import input_specs
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.model.interactions import INTERACTIONS
from srsjax.model.spec import ModelSpec, Outputs, encoder_config
from srsjax.objectives import objective
from srsjax.runs.warm_start import read_encoder


def make_spec(config: TrainConfig, text: TextEncoder, manifest: dict | None = None) -> ModelSpec:
    """The model of a config for a tokenizer; the candidate slots C are known once the batches are planned.

    `manifest` is that of the prepared store, which has the sizes of features besides text.

    Raises InputError where the interaction, its layers or the checkpoint do not fit the schema or the tokenizer.
    """
    model = config.model
    pretrained = read_encoder(model.pretrained) if model.pretrained else None
    encoder = encoder_config(model, text.vocab_size, pretrained)
    interaction = INTERACTIONS[model.interaction]
    layout = make_layout(config, text, interaction.shares_context)
    context = most_tokens(config.schema.context) + len(layout.template.prefix) + len(layout.between)
    candidate = most_tokens(config.schema.candidate) + len(layout.template.suffix)
    return ModelSpec.of(
        model,
        encoder,
        outputs=tuple(Outputs(task.name, task.kind, objective(task).outputs) for task in config.schema.tasks),
        features=input_specs(config.schema, manifest or {}) if model.combine != "text" else (),
        has_context=layout.has_context,
        candidate_start=layout.candidate_start,
        longest_part=interaction.longest_part(context, candidate),
        tokens=config.batch.tokens,
    )


def layout_of(spec: ModelSpec, text: TextEncoder) -> Layout:
    """How texts become the sequences that a model was made for."""
    return Layout(text.template, text.pad_id, spec.has_context, spec.candidate_start)
