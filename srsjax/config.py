"""Every dataclass a user writes in `configs/*.py`: frozen, typed, bounded, documented field by field.

A config file defines `get_config() -> TrainConfig`. Any field can be set on the command line by its dotted
name (`--optimizer.learning_rate 3e-5`, `--schema.context.0.max_tokens 24`); the resolved config is written to
the run folder. What is read is in `srsjax.config_data`, what is trained is here; config files import all of it from
here. Neither imports anything but the standard library, so that every command starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from srsjax.bounds import (
    AtLeast0,
    AtLeast1,
    DefaultOrAtLeast0,
    DefaultOrShare,
    NotNegative,
    OffOrSeconds,
    Positive,
    PositiveShare,
    RestOrAtLeast1,
    Seed,
    Share,
    ShareBelow1,
    Steps,
)
from srsjax.config_data import *  # noqa: F403 (config files import all of it from here)
from srsjax.config_data import Data, Schema, Tokenizer

# ---------------------------------------------------------------------------------------------- model


Dtype = Literal["auto", "float32", "bfloat16", "float8"]
Remat = Literal["none", "dots", "full"]


@dataclass(frozen=True)
class Model:
    """The encoder, its read-out and its head."""

    pretrained: str = ""
    """Where weights start from: a Hugging Face folder or hub name of a BERT or RoBERTa checkpoint (safetensors), or the
    folder of a finished run, whose best checkpoint and tokenizer are taken (to train on with newer data). Empty makes a
    fresh encoder. A hub name may have a branch, tag or commit (`name@revision`); the run keeps the commit it found."""
    interaction: Literal["cross", "shared", "split", "towers"] = "cross"
    """Which tokens see which. `cross`: context and candidate see each other (plain BERT). `shared`: the candidate sees
    the context, which sees only itself and is computed once for all its candidates. `split`: as `shared`, but below
    `split_layers` the candidate sees only itself, so that these layers can be computed once and stored. `towers`: they
    meet only in a product of two vectors."""
    split_layers: DefaultOrAtLeast0 = -1
    """Layers of `split` in which the candidate sees only itself; -1 is two thirds of them."""
    candidate_start: DefaultOrAtLeast0 = -1
    """Position at which every candidate starts in `shared` and `split` (in `cross` its positions run on, in `towers` it
    is a sequence of its own); -1 is the end of the context's token budget. A position that the context uses too makes
    the two hard to tell apart."""
    readout: Literal["pooled", "first", "mean"] = "pooled"
    """What the head reads: BERT's pooled first token, the first token, or the mean over the tokens: of the pair in
    `cross`, of the candidate in the others (in `towers`, of each side)."""
    combine: Literal["concat", "attention", "mlp", "wide_deep", "deepfm", "dcn", "text"] = "concat"
    """How features besides text join the vectors that the head reads; each becomes a vector of the encoder's width.
    `concat`: a small multi-layer perceptron over all vectors is added to the text's. `attention`: a weighted sum of
    all vectors, with weights that depend on them, is. `mlp`: a multi-layer perceptron of `combine_layers` replaces it.
    Beside that perceptron `wide_deep` has the sum of all vectors, `deepfm` also their products in pairs, and `dcn`
    (DCN-V2) cross layers. `text`: they are stored, and not read, to compare with. A schema
    without any text has no encoder: the four with a perceptron are then the usual baselines on ids and numbers."""
    combine_layers: tuple[int, ...] = (256, 128)
    """Hidden widths of the perceptron; `dcn` without any is cross layers alone."""
    cross_layers: AtLeast1 = 3
    """Cross layers of `dcn`."""
    combine_activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """After each of `combine_layers`."""
    combine_dropout: ShareBelow1 = 0.0
    """Dropout after each of `combine_layers`."""
    hidden_size: AtLeast1 = 128
    """Width D of a fresh encoder, and of the vectors of features besides text."""
    num_layers: AtLeast1 = 2
    """Layers of a fresh encoder."""
    num_heads: AtLeast1 = 4
    """Attention heads of a fresh encoder."""
    intermediate_size: AtLeast1 = 512
    """Feed-forward width of a fresh encoder."""
    max_positions: AtLeast1 = 512
    """Position embeddings of a fresh encoder."""
    initializer_range: Positive = 0.02
    """Standard deviation of a fresh encoder's weights. BERT's 0.02 is for widths near 768; a narrow encoder starts to
    learn much sooner with about 1 / sqrt(width)."""
    hidden_dropout: DefaultOrShare = -1.0
    """Dropout of hidden states; -1 keeps the checkpoint's (0.1 for a fresh encoder)."""
    attention_dropout: DefaultOrShare = -1.0
    """Dropout of attention probabilities; -1 keeps the checkpoint's (0.1 for a fresh encoder)."""
    adapter_rank: AtLeast0 = 0
    """Above 0, `pretrained` weights of the encoder stay as they are and each kernel of its layers gets two small
    matrices of this rank beside it (LoRA, Hu et al. 2021), which are trained with the head and the other features:
    little optimizer state, and less to unlearn. Learning rates of 1e-4 to 1e-3 are usual. Scoring and exports have the
    sums."""
    product: Literal["cosine", "bilinear"] = "cosine"
    """How the two vectors of `towers` meet: in a scaled product of vectors of length 1, or of the two mapped to one
    space by a matrix each, sigmoid(W1 z . W2 w + b)."""
    experts: AtLeast0 = 0
    """Above 0, each task reads its own mixture of so many small networks instead of one vector for all (MMoE, Ma et al.
    2018): for several tasks that want different things. Not in `towers`."""
    task_experts: AtLeast0 = 0
    """Beside those `experts`, which all tasks share, so many of each task alone (PLE, Tang et al. 2020)."""
    expert_levels: AtLeast1 = 1
    """Levels of experts, one above the other."""
    task_weights: Literal["fixed", "uncertainty", "gradients"] = "fixed"
    """What the losses of several tasks are weighed by, besides `Task.loss_weight`: nothing; exp(-s) of a trained
    number s for each, with s / 2 added (homoscedastic uncertainty, Kendall et al. 2018), which may be below 0; or
    `gradients`: each task pulls equally hard at the vector that all tasks read, whatever the size of its loss."""
    head_dropout: ShareBelow1 = 0.1
    """Dropout before the head."""
    dtype: Dtype = "auto"
    """Compute type; `auto` is bfloat16 on GPU and TPU, float32 on a CPU without bfloat16 units, and the faster of the
    two, timed, on a CPU with them; a resumed run keeps what it began with. `float8` is bfloat16 but for the products
    with the encoder's weights (Ada and Hopper GPUs and later, the extra [float8]; CPUs only to try it). Parameters and
    losses stay float32."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """What computes attention: plain XLA, splash attention (TPU) or cuDNN (GPU). The last two are compared with a
    reference on the devices before they are used, and have no dropout: they train only with `attention_dropout` 0.
    `auto` times what is proven and takes the fastest, which may differ from start to start where two are close: a run
    that must resume bit for bit on GPU or TPU names one. Scoring chooses anew for its own devices."""
    remat: Remat = "none"
    """What a layer's gradient computes again instead of keeping it in memory: nothing; all but the results of products
    with weights; or everything but the layer's input (the least memory, a third more arithmetic)."""


# ---------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Mesh:
    """Sizes of the device mesh; one of them may be -1 (the rest of the devices)."""

    data: RestOrAtLeast1 = -1
    """Rows are divided; parameters are copied."""
    fsdp: RestOrAtLeast1 = 1
    """Rows are divided; parameters and optimizer state too."""
    tensor: RestOrAtLeast1 = 1
    """Heads and feed-forward width are divided."""


@dataclass(frozen=True)
class Batch:
    """The shape of a packed batch."""

    rows: AtLeast1 = 32
    """Rows R of one optimizer step over all devices. A row holds as many examples (candidates with their contexts) as
    fit, so that a step has many times as many examples as rows; the start of a run says how many."""
    examples: AtLeast0 = 0
    """Examples of one optimizer step to aim at, instead of `rows`: above 0, the rows are chosen by the lengths in the
    store."""
    tokens: AtLeast1 = 128
    """Token slots L of a row; at least the budgets of one pair together."""
    candidates: AtLeast0 = 0
    """Candidate slots C of a row; 0 chooses by the lengths in the store."""
    micro_batches: AtLeast1 = 1
    """Parts the step is computed in, to save memory; the result is the same but for dropout's random bits, and but for
    contrastive tasks and `model.task_weights gradients`, which compare the candidates of one part."""
    eval_rows: AtLeast0 = 0
    """Rows of an evaluation or scoring batch; 0 means as many as one micro-batch and, where a CPU encodes text, at most
    1,024 tokens: its caches hold no more."""
    workers: AtLeast0 = 0
    """Grain worker processes that assemble batches; 0 assembles them in threads of this process. One that is killed, or
    stopped for 20 seconds, ends training with exit code 71, saved."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with an optimizer of their own; the schedule is that of `Optimizer`."""

    match: str = ""
    """Regular expression that is found in the paths of its parameters (`^bert/embeddings/`); a parameter belongs to
    the first group that matches."""
    name: str = ""
    """Name of its optimizer; empty means that of `Optimizer`."""
    learning_rate: NotNegative = 0.0
    """Peak learning rate; 0 means that of `Optimizer`."""
    args: dict[str, float] = field(default_factory=dict)
    """Further arguments of its optimizer by name."""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer, its schedule, and what is decayed and scaled."""

    name: str = "adamw"
    """Name of an optimizer in `optax` or `optax.contrib` (adamw, adam, sgd, lion, adafactor, ...)."""
    learning_rate: Positive = 3e-5
    """Peak learning rate."""
    args: dict[str, float] = field(default_factory=dict)
    """Further arguments of the optimizer by name (`b2`, `eps`, `momentum`, ...)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up; linear and cosine end at 0."""
    warmup: NotNegative = 0.1
    """Warm-up steps if >= 1, else as a share of all steps."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of matrices; biases, normalisation and position tables are not decayed. Only for
    optimizers that take it."""
    l1: NotNegative = 0.0
    """L1 penalty of the matrices that `weight_decay` is for: each step moves them towards 0 by this times the learning
    rate, and no further, so that what does not help is 0 (Duchi and Singer 2009)."""
    layer_decay: PositiveShare = 1.0
    """Layer-wise learning-rate decay: the head has multiplier 1, each layer below it this times the one above."""
    head_multiplier: NotNegative = 1.0
    """Learning-rate multiplier of head parameters."""
    clip_norm: NotNegative = 1.0
    """Largest global gradient norm, over all groups; 0 turns clipping off."""
    max_skipped: AtLeast0 = 10
    """Steps in a row that are skipped because their loss or gradient is not finite; one more ends the training."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter paths that are not trained (`^bert/embeddings/`, `^bert/layers/[0-5]/`): they
    have no gradient and no optimizer state."""
    tables: Literal["dense", "rowwise_adagrad", "adam", "sgd"] = "dense"
    """How the embeddings of `Categorical` features are updated: as all other parameters, every row at every step; or
    only the rows that are in the batch, by row-wise Adagrad (one number a row beside the table), Adam (two tables
    more) or gradient descent: for tables of many ids. These are neither clipped nor decayed."""
    table_learning_rate: NotNegative = 0.0
    """Peak learning rate of `tables` that are not dense; 0 means `learning_rate`. Adagrad takes a larger one."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with an optimizer of their own; all others take this one."""


@dataclass(frozen=True)
class Distill:
    """Learning from a finished run besides the labels (distillation, Hinton et al. 2015)."""

    teacher: str = ""
    """Run folder of the teacher. It scores the training rows once; its schema, tokenizer and interaction may be others,
    as long as these tables have what it reads, and it has a task of each name. Empty trains by labels alone."""
    weight: Share = 0.5
    """Share of the soft loss w: each task has (1 - w) of its own loss and w of the teacher's."""
    temperature: Positive = 2.0
    """T of binary and multiclass tasks: cross-entropy with the teacher's probabilities, both logits divided by T, times
    T^2. The others have none: regression the squared difference to the teacher's number, pairwise and listwise tasks
    that of the margin of two candidates (Margin-MSE, Hofstaetter et al. 2020)."""


@dataclass(frozen=True)
class Fairness:
    """What is asked of the training of the first task, a binary one, for the sake of groups. Name the same feature in
    `evaluate.slices`: the report then has the gaps between the groups, and what closing them costs elsewhere."""

    by: str = ""
    """A Categorical feature of one value: its eight largest categories and the rest are the groups. Empty asks for
    nothing."""
    method: Literal["reweight", "opportunity"] = "reweight"
    """`reweight`: rows are weighed so that in all groups the same share is positive (Kamiran and Calders 2012), which
    brings the groups' mean scores together. `opportunity`: a penalty on how far the mean scores of the groups' positive
    rows lie apart (equal opportunity, Hardt et al. 2016), taken over a micro-batch: it should have dozens of each."""
    strength: NotNegative = 1.0
    """Of `reweight` the exponent of the weights: 1 makes the shares equal. Of `opportunity` the factor of the penalty,
    the variance of the groups' mean probabilities: 10 is felt."""


@dataclass(frozen=True)
class Evaluate:
    """When validation runs and which metric decides."""

    every: AtLeast0 = 0
    """Steps between evaluations; 0 means at the end of each epoch."""
    monitor: str = ""
    """Metric that chooses the best checkpoint and stops early (see `srsjax.metrics.table`); of the first task, or
    `task/metric`. Empty means that of the first task's kind: `auc`, or `ndcg@k` of a listwise one."""
    mode: Literal["auto", "max", "min"] = "auto"
    """Whether larger or smaller is better; `auto` knows the built-in metrics."""
    patience: AtLeast0 = 0
    """Stop after this many evaluations without a better value; 0 never stops early."""
    threshold: Share = 0.5
    """Threshold of accuracy, precision, recall and F1."""
    ndcg_at: AtLeast1 = 10
    """k of NDCG@k."""
    calibration: Literal["auto", "none", "temperature", "platt", "isotonic"] = "auto"
    """How scores of binary and multiclass tasks are calibrated, on the validation split with the best checkpoint: by
    one number that divides the logits; a scale and an offset (of classes one each); or isotonic regression (binary
    only). `auto` takes the one with the best cross-fitted log loss where it gains more than chance, else `none`."""
    calibration_slice: str = ""
    """A Categorical feature of one value, not `training_only`: its categories get a scale and an offset of their own in
    binary tasks, where they have enough rows and gain by it. Candidates of different categories may then change their
    order."""
    class_shares: dict[str, float] = field(default_factory=dict)
    """Shares that classes of multiclass tasks have where the model is used, if others than in the validation rows:
    oos=0.2 where every fifth question is out of scope. Those rows are weighed by it, and `auto` may give the named
    classes an offset as well; metrics count rows as they are."""
    slices: tuple[str, ...] = ()
    """Features (Categorical of one value, or Numeric, not `private`) within whose categories and quarters the report
    measures the first task too, and the gaps between them; validation logs them without intervals
    (`gap by country/auc`)."""
    negatives_rate: Share = 1.0
    """Share of all negatives that the rows have, where they were sampled: log(rate) is added to the log-odds that
    `score` and `Scorer` give of binary tasks (not to those that are evaluated, on sampled rows). 0 is known of
    `data.negatives` that are drawn all alike: negatives / items of the catalogue."""


@dataclass(frozen=True)
class Checkpoints:
    """What is kept on disk."""

    every: AtLeast0 = 0
    """Steps between checkpoints for resuming, besides those at evaluations; 0 means only those."""
    keep: AtLeast0 = 2
    """Latest checkpoints kept, besides the best one."""


@dataclass(frozen=True)
class Profile:
    """What is traced."""

    steps: str = ""
    """Training steps that are traced for TensorBoard and Perfetto, first and last one: `10:15`; empty traces none. The
    trace is below the run folder's `tensorboard`. The first steps after a start are slower than others."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    schema: Schema = Schema()
    """Features and tasks."""
    data: Data = Data()
    """Tables, cleaning and split."""
    tokenizer: Tokenizer = Tokenizer()
    """Tokenizer."""
    model: Model = Model()
    """Encoder and head."""
    mesh: Mesh = Mesh()
    """Devices."""
    batch: Batch = Batch()
    """Packed batch."""
    optimizer: Optimizer = Optimizer()
    """Optimizer."""
    distill: Distill = Distill()
    """Teacher."""
    fairness: Fairness = Fairness()
    """Groups."""
    evaluate: Evaluate = Evaluate()
    """Validation."""
    checkpoints: Checkpoints = Checkpoints()
    """Checkpoints."""
    profile: Profile = Profile()
    """Traces."""
    epochs: Positive = 1.0
    """Passes over the training rows (may be a fraction)."""
    max_steps: Steps = 0
    """Stop after this many optimizer steps; 0 means `epochs` decides."""
    log_every: AtLeast1 = 10
    """Steps between log lines; the host waits for the device only then."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Trackers that log lines and evaluations go to, besides `metrics.jsonl`; several may be named, all but TensorBoard
    are extras ([wandb], [mlflow], [trackio]). One that fails or hangs is dropped; a resumed run continues its own."""
    seed: Seed = 0
    """Seed of initialisation, order, packing and dropout."""
    run_dir: str = ""
    """Run folder; empty means `runs/<config name>`."""
    watchdog: OffOrSeconds = 1800.0
    """Seconds without progress after which training prints the stack of every thread and ends with exit code 70; 0
    waits without end. Progress is a finished step, a batch of an evaluation, and any use of CPUs or files in set-up,
    compilation, checkpoints and metrics, which may take as long as they need. More than the longest step."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""
