"""What a model is: made once from a config and a prepared store, and all that inference, planning and export read."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srsjax import config
from srsjax.data.inputs import InputSpec
from srsjax.errors import InputError
from srsjax.model import hf
from srsjax.model.bert import BertConfig
from srsjax.model.combine import Settings
from srsjax.model.interactions import INTERACTIONS, Interaction


@dataclass(frozen=True)
class Outputs:
    """The logits of one task."""

    task: str
    """Name of the task."""
    kind: str
    """`Task.kind`."""
    count: int = 1
    """K_t; the outputs of all tasks are concatenated."""
    classes: tuple[str, ...] = ()
    """Names of the outputs of a multiclass task."""
    after: str = ""
    """`Task.after`: its logit is that of the product of both probabilities."""
    mean: float = 0.0
    """Of the training labels of a regression task, which predicts `mean + deviation * logit`."""
    deviation: float = 1.0
    """Standard deviation of these labels."""


@dataclass(frozen=True)
class ModelSpec:
    """Encoder, interaction, inputs, outputs and the shape of a row; `model.json` of a run folder."""

    encoder: BertConfig
    interaction: Interaction = INTERACTIONS["cross"]
    split_layers: int = 0
    """Layers of `split` in which a candidate sees only itself."""
    readout: str = "pooled"
    """`model.readout`."""
    head_dropout: float = 0.0
    outputs: tuple[Outputs, ...] = (Outputs("click", "binary"),)
    features: tuple[InputSpec, ...] = ()
    """What is read besides text."""
    combine: str = "text"
    """How: `model.combine`."""
    combining: Settings = Settings()
    """With which sizes."""
    product: str = "cosine"
    """Of the two vectors of towers: `model.product`."""
    adapter_rank: int = 0
    """Of the adapters in training, `model.adapter_rank`; a run is loaded without them."""
    experts: int = 0
    """Experts of a mixture for each task before the heads; 0 is one head for all."""
    task_experts: int = 0
    """Further experts of each task alone."""
    expert_levels: int = 1
    """Levels of experts."""
    balance: tuple[float, ...] = ()
    """`Task.loss_weight` of each task, where each is to pull equally hard at what they share (`model.task_weights
    gradients`); empty where gradients are as they are."""
    reads_text: bool = True
    """Whether the schema has text; else there is no encoder, and `encoder.hidden_size` is the width of the features'
    vectors."""
    weighs_tasks: bool = False
    """Whether it has a trained log-variance for each task (`model.task_weights uncertainty`)."""
    has_context: bool = True
    """Whether the schema has context text."""
    candidate_start: int | None = None
    """Position at which every candidate starts; None where its positions run on (`Layout.candidate_start`)."""
    longest_part: int = 0
    """Most tokens of a part of a row that sees itself alone in some layer, by the budgets; 0 where there is none, or
    where it is unknown."""
    tokens: int = 0
    """Token slots L of a row."""
    candidates: int = 0
    """Candidate slots C of a row; 0 until the batches are planned."""

    def __post_init__(self):
        if not 0 <= self.split_layers <= self.encoder.num_layers:
            raise InputError(
                f"model.split_layers: found {self.split_layers}, expected -1 to the {self.encoder.num_layers} layers"
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON data; the interaction by its name."""
        return dataclasses.asdict(self) | {"interaction": self.interaction.name}

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> ModelSpec:
        """The spec that `to_json` wrote. Raises InputError naming `source` where it is not one of this version."""
        try:
            made = {
                "encoder": BertConfig(**data["encoder"]),
                "interaction": INTERACTIONS[data["interaction"]],
                "outputs": tuple(map(_outputs, data["outputs"])),
                "features": tuple(map(_input, data["features"])),
                "combining": _combining(data.get("combining", {})),
                "balance": tuple(data.get("balance", ())),
            }
            if INTERACTIONS[data["interaction"]].apart and data.get("candidate_start"):
                raise KeyError("in towers a candidate is a sequence of its own")
            return cls(**data | made)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{source}: not the model of a run of this version ({error}); train it again") from None

    @classmethod
    def of(cls, model: config.Model, encoder: BertConfig, **more: Any) -> ModelSpec:
        """The spec of a config's model with this encoder; `more` are the fields that depend on data and tasks."""
        return cls(
            encoder,
            INTERACTIONS[model.interaction],
            split_layers=lower_layers(model, encoder.num_layers),
            readout=model.readout,
            head_dropout=model.head_dropout,
            combine=model.combine,
            product=model.product,
            adapter_rank=model.adapter_rank,
            experts=model.experts,
            task_experts=model.task_experts,
            expert_levels=model.expert_levels,
            weighs_tasks=model.task_weights == "uncertainty",
            combining=Settings(
                model.combine_layers, model.cross_layers, model.combine_dropout, model.combine_activation
            ),
            **more,
        )

    @property
    def num_outputs(self) -> int:
        """Logits of a candidate, K of all tasks together."""
        return sum(outputs.count for outputs in self.outputs)

    @property
    def stored_layers(self) -> int:
        """Layers that stored item states have behind them. The last one always runs: it computes read-outs only."""
        return min(self.split_layers, self.encoder.num_layers - 1)


def output_slices(outputs: Sequence[Outputs]) -> list[slice]:
    """Where the logits of each task are among those of all, [..., K]."""
    ends = itertools.accumulate(each.count for each in outputs)
    return [slice(end - each.count, end) for each, end in zip(outputs, ends, strict=True)]


def label_names(outputs: Sequence[Outputs]) -> list[str]:
    """The name of each logit: the task's, or the class's, with the task before it where there are several tasks."""
    names = []
    for each in outputs:
        before = f"{each.task}/" if len(outputs) > 1 else ""
        names += [before + name for name in each.classes] or [each.task]
    return names


def _combining(data: dict[str, Any]) -> Settings:
    return Settings(**data | {"layers": tuple(data.get("layers", ()))})


def _input(data: dict[str, Any]) -> InputSpec:
    return InputSpec(**data | {"edges": tuple(data.get("edges", ()))})


def _outputs(data: dict[str, Any]) -> Outputs:
    return Outputs(**data | {"classes": tuple(data.get("classes", ()))})


def lower_layers(model: config.Model, num_layers: int) -> int:
    """Layers of `split` in which a candidate sees only itself; 0 in the other interactions."""
    if not INTERACTIONS[model.interaction].stores_items:
        return 0
    return 2 * num_layers // 3 if model.split_layers == -1 else model.split_layers


def encoder_config(model: config.Model, vocab_size: int, pretrained: BertConfig | None = None) -> BertConfig:
    """Sizes of the encoder: those of the weights it starts from, else those of `model`.

    Args:
      model: dropouts at or above 0 override the checkpoint's; only the `pooled` read-out has a pooler.
      vocab_size: number of token ids of the tokenizer.
      pretrained: the encoder of `model.pretrained`; None reads it there, if there is one, as a Hugging Face checkpoint.

    Raises:
      InputError: the checkpoint cannot be read, or has fewer token embeddings than the tokenizer has ids.
    """
    if model.pretrained:
        bert = pretrained or hf.load_config(model.pretrained)
        if vocab_size > bert.vocab_size:
            raise InputError(
                f"{model.pretrained}: {bert.vocab_size} token embeddings, but the tokenizer has {vocab_size} ids; use "
                "the tokenizer of the same checkpoint"
            )
    else:
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions", "initializer_range")
        bert = BertConfig(vocab_size, **{name: getattr(model, name) for name in sizes})
    dropouts = ("hidden_dropout", "attention_dropout")
    changes = {name: getattr(model, name) for name in dropouts if getattr(model, name) >= 0}
    return dataclasses.replace(bert, has_pooler=model.readout == "pooled", **changes)
