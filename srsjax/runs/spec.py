"""The spec of a run's model, from its config and the prepared store."""

from __future__ import annotations

from srsjax.config import TrainConfig
from srsjax.data.batches.layout import Layout, make_layout, most_tokens, no_text
from srsjax.data.inputs import input_specs
from srsjax.data.kinds import has_text
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.errors import InputError
from srsjax.model.interactions import INTERACTIONS
from srsjax.model.spec import ModelSpec, encoder_config
from srsjax.objectives import objective
from srsjax.runs.warm_start import read_encoder


def make_spec(config: TrainConfig, text: TextEncoder, manifest: dict | None = None) -> ModelSpec:
    """The model of a config for a tokenizer; the candidate slots C are known once the batches are planned.

    `manifest` is that of the prepared store, which has the sizes of features besides text.

    Raises InputError where the interaction, its layers or the checkpoint do not fit the schema or the tokenizer.
    """
    model, fitted = config.model, Fitted(**(manifest or {}).get("fitted", {}))
    pretrained = read_encoder(model.pretrained) if model.pretrained else None
    encoder = encoder_config(model, text.vocab_size, pretrained)
    interaction = INTERACTIONS[model.interaction]
    layout = make_layout(config, text, interaction.shares_context, interaction.apart)
    context = most_tokens(config.schema.context) + layout.context_special
    candidate = most_tokens(config.schema.candidate) + layout.candidate_special
    features = input_specs(config.schema, manifest or {}) if model.combine != "text" else ()
    reads_text = has_text(config.schema)
    if not reads_text and all(feature.fixed is not None for feature in features):
        raise InputError(
            "model.combine: found text, but the schema has none; set model.combine mlp or dcn, which read its features"
            if model.combine == "text"
            else "schema: no feature that the model can read, expected Text, Categorical, Numeric or Vector "
            "features, not all of them training_only"
        )
    if model.adapter_rank and not (reads_text and model.pretrained):
        raise InputError(
            f"model.adapter_rank: found {model.adapter_rank} without "
            f"{'model.pretrained' if reads_text else 'any text'}: adapters change a pre-trained encoder"
        )
    if interaction.reads_context and not reads_text and len({feature.side for feature in features}) < 2:
        raise InputError("model.interaction: found towers, but the schema has features of one side alone")
    if interaction.reads_context and model.experts:
        raise InputError("model.experts: found towers, whose head is a product of two vectors; use another interaction")
    if model.task_experts and not model.experts:
        raise InputError("model.task_experts: found no model.experts, expected at least one that all tasks share")
    if any(task.kind == "contrastive" for task in config.schema.tasks) and not interaction.reads_context:
        raise InputError(
            f"schema.tasks: found kind contrastive with model.interaction {interaction.name}, expected towers: in the "
            "others a candidate has no vector of its own that other contexts could meet"
        )
    if interaction.reads_context and model.combine not in ("concat", "attention", "text"):
        raise InputError(
            f"model.combine: found {model.combine!r}, whose vectors have no common size for the product of towers; set "
            "model.combine concat or attention"
        )
    return ModelSpec.of(
        model,
        encoder,
        outputs=tuple(objective(task).outputs(fitted) for task in config.schema.tasks),
        features=features,
        reads_text=reads_text,
        balance=tuple(task.loss_weight for task in config.schema.tasks) if model.task_weights == "gradients" else (),
        has_context=layout.has_context,
        candidate_start=layout.candidate_start,
        longest_part=interaction.longest_part(context, candidate),
        tokens=config.batch.tokens,
    )


def layout_of(spec: ModelSpec, text: TextEncoder) -> Layout:
    """How texts become the sequences that a model was made for."""
    if not spec.reads_text:
        return no_text(text)
    template = text.template.apart() if spec.interaction.apart else text.template
    return Layout(template, text.pad_id, spec.has_context, spec.candidate_start)
