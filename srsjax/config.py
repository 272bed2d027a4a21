"""Every dataclass a user writes in `configs/*.py`: frozen, typed, documented field by field.

A config file defines `get_config() -> TrainConfig`. Any field can be set on the command line by its dotted
name (`--optimizer.learning_rate 3e-5`, `--schema.context.0.max_tokens 24`); the resolved config is written to
the run folder. This module imports nothing but the standard library, so that every command starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Missing = Literal["error", "drop", "constant", "mean", "median", "most_frequent"]


# ---------------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class Text:
    """A column of text, tokenised and read by the encoder."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    max_tokens: int = 32
    """Token budget of this field; longer text is cut at its end, and the cuts are counted in the manifest."""
    missing: Missing = "constant"
    """What a missing text becomes: `constant` puts `fill`, `most_frequent` the commonest text, `drop` leaves the
    row out, `error` stops. `mean` and `median` are refused for text."""
    fill: str = ""
    """The text that `missing="constant"` puts in."""


@dataclass(frozen=True)
class History:
    """A list of catalogue items (clicked, bought, ...) whose text is read, newest first."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """List column of item keys: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    catalogue: str = "items"
    """The catalogue whose keys the list holds; its key must be a single column."""
    fields: tuple[str, ...] = ("title",)
    """Columns of that catalogue whose text is read for each item."""
    order: Literal["newest_first", "oldest_first"] = "newest_first"
    """How the column lists its items. The model always reads the newest first."""
    max_items: int = 10
    """Newest items that are read; older ones are cut and counted."""
    item_tokens: int = 16
    """Token budget of one item."""
    max_tokens: int = 64
    """Token budget of the whole history; the oldest items are cut first."""


@dataclass(frozen=True)
class Categorical:
    """A column of categories (ids, brands, countries), stored as int32 ids; 0 is missing or unknown."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    hash_buckets: int = 0
    """Above 0, the id is 1 + hash modulo this; 0 keeps a vocabulary of the training rows."""
    min_count: int = 1
    """Values seen less often in the training rows are unknown (vocabulary only)."""
    missing: Missing = "constant"
    """What a missing value becomes: `constant` makes it id 0, or the category `fill`; `most_frequent`, `drop`,
    `error`."""
    fill: str = ""
    """The category that `missing="constant"` puts in; empty is id 0."""


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, stored as float32 as they are; mean and deviation stand in the manifest."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    missing: Missing = "error"
    """What a missing number becomes; mean, median and most frequent value are those of the training rows."""
    fill: float = 0.0
    """The number that `missing="constant"` puts in."""


@dataclass(frozen=True)
class Vector:
    """A list column of `size` numbers (an image or sentence embedding), stored as float32."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    size: int = 0
    """Length of every vector."""
    missing: Missing = "error"
    """What a missing vector becomes: `constant` fills it with `fill`; `drop`, `error`."""
    fill: float = 0.0
    """The number that `missing="constant"` fills a missing vector with."""


Feature = Text | History | Categorical | Numeric | Vector


@dataclass(frozen=True)
class Task:
    """One label to predict."""

    name: str = "click"
    """Name of the task, unique in the schema."""
    column: str = ""
    """Label column of the log: 0, 1, true, false or a probability between; empty means `name`. A missing label has
    weight 0."""
    positive: str = ""
    """Where the label column holds text: this value is 1, every other is 0."""
    impressions: str = ""
    """Column of impression counts of aggregated rows: the label column then holds counts of clicks, the label
    becomes clicks / impressions and the weight is multiplied by the impressions."""
    weight: str = ""
    """Column of sample weights (>= 0)."""
    weight_power: float = 1.0
    """The training weight is the weight to this power; 0 treats every candidate alike, 1 keeps counts as they are.
    Evaluation always uses the weights as they are."""
    kind: Literal["binary", "listwise"] = "binary"
    """`binary`: binary cross-entropy; with `softmax` above 0, mixed with softmax cross-entropy within each
    impression. `listwise`: the softmax cross-entropy alone (labels may be any grade >= 0)."""
    softmax: float = 0.0
    """Share of the softmax cross-entropy in the loss of a binary task, 0 to 1. Its target is each candidate's share of
    weight ** weight_power * label within the impression."""
    label_smoothing: float = 0.0
    """A binary label y becomes y (1 - s) + s / 2."""
    loss_weight: float = 1.0
    """Weight of this task in the sum of losses."""


@dataclass(frozen=True)
class Schema:
    """What the model reads and predicts: the one place that says what a table means."""

    context: tuple[Text | History | Categorical | Numeric | Vector, ...] = ()
    """Features known before an item is shown: query, user, history. May be empty."""
    candidate: tuple[Text | Categorical | Numeric | Vector, ...] = ()
    """Features of the item shown."""
    tasks: tuple[Task, ...] = (Task(),)
    """Labels to predict."""


# ---------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Table:
    """Files with the same columns: one path, a glob, or several of them."""

    files: str | tuple[str, ...] = ""
    """Paths or globs; `${NAME}` is replaced by an environment variable. Compression (.gz, .zst) is seen by name."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    """File format; `auto` goes by the file name."""
    encoding: str = "utf-8"
    """Text encoding of CSV and TSV files. JSON-lines is UTF-8 by definition. A file in another encoding than UTF-8 is
    read from a temporary copy, for which TMPDIR must have room."""


@dataclass(frozen=True)
class Catalogue(Table):
    """A table joined to the log by key: items, users, queries."""

    name: str = "items"
    """Name by which features refer to its columns (`items.title`)."""
    key: str | tuple[str, ...] = "item_id"
    """Key column or columns of this table; unique."""
    on: str | tuple[str, ...] = ()
    """Columns of the log that hold the key; empty means the same names as `key`."""
    side: Literal["context", "candidate"] = "candidate"
    """Whether it describes the context (users, queries) or the candidate (items)."""
    unknown: Literal["error", "drop", "missing"] = "error"
    """A log row whose key is not here: stop, leave the row out (counted), or treat its features as missing."""


@dataclass(frozen=True)
class Split:
    """Which rows train, validate and test."""

    by: Literal["hash", "time", "column"] = "hash"
    """By a hash of a key, by time (oldest train), or as a column says."""
    column: str | tuple[str, ...] = ()
    """Key column(s) for `hash` (default: `group_by`, else the whole row), the time column, or the column that holds
    the split; `catalogue.column` is allowed."""
    valid: float = 0.1
    """Share of validation rows (hash, time)."""
    test: float = 0.1
    """Share of test rows (hash, time)."""
    values: tuple[str, str, str] = ("train", "valid", "test")
    """What the column says for train, valid and test (column); rows with another value are left out, counted."""
    seed: int = 0
    """Changes the hash split."""


@dataclass(frozen=True)
class Shop:
    """The simulated shop (`srsjax.data.shop`): written once as Parquet files under `folder`."""

    folder: str = ""
    """Where its files are written; empty means no simulated data."""
    impressions: int = 16000
    """Result pages in the log."""
    page: int = 8
    """Candidates on a page."""
    items: int = 1200
    """Items of the catalogue."""
    users: int = 1500
    """Users."""
    seed: int = 0
    """Seed of everything in it."""


@dataclass(frozen=True)
class Data:
    """Where the tables are, how rows become impressions, and how they are cleaned and split."""

    log: Table = Table()
    """The log: one row a candidate, or one row an impression (see `explode`)."""
    catalogues: tuple[Catalogue, ...] = ()
    """Tables joined to the log."""
    shop: Shop = Shop()
    """Simulated data to write first, if its folder is named."""
    explode: str | tuple[str, ...] = ()
    """List columns of equal length that hold one value a candidate: each log row is then one impression. A column
    holding a list of structs `c` gives columns `c.field`."""
    group_by: str | tuple[str, ...] = ()
    """Columns whose equal values make one impression (request id, session, test); empty: each log row is one."""
    user: str = ""
    """Column by which GAUC groups; empty means by impression."""
    keys: tuple[str, ...] = ()
    """Columns copied into the file of scores; empty means the key, group and user columns."""
    unique: str | tuple[str, ...] = ()
    """Columns that identify a row: later rows with the same values are left out, counted; `*` means the whole row."""
    oracle: str = ""
    """Column with the known probability of the first task, where there is one (simulated data); reports then show
    the best attainable metrics."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be read as the schema says, or set it aside in `bad_rows.jsonl` and count it."""
    split: Split = Split()
    """Train, valid and test."""
    store: str = "stores"
    """Folder of prepared stores, one subfolder for each fingerprint of input, schema and tokenizer."""
    engine: Literal["local", "spark"] = "local"
    """What reads, cleans and tokenises the log: threads of this machine, or the Spark cluster of the active session
    (else the one that Spark's own settings name). All its machines see the log and `store` under the same paths and
    have srsjax installed. The store is the same, byte for byte."""
    workers: int = 0
    """Threads of the local engine; 0 is one for each core. The store is the same whatever their number."""


@dataclass(frozen=True)
class Tokenizer:
    """Where the tokenizer comes from."""

    source: str = ""
    """Hugging Face folder or hub name; empty means that of `model.pretrained`, and without one a WordPiece
    vocabulary is trained on the training rows."""
    vocab_size: int = 8000
    """Size of a trained vocabulary."""
    lowercase: bool = True
    """Whether a trained tokenizer lower-cases and strips accents."""


# ---------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Model:
    """The encoder, its read-out and its head."""

    pretrained: str = ""
    """Where weights start from: a Hugging Face folder or hub name of a BERT or RoBERTa checkpoint (safetensors), or the
    folder of a finished run, whose best checkpoint and tokenizer are taken (to train on with newer data). Empty makes a
    fresh encoder."""
    interaction: Literal["cross", "shared", "split", "towers"] = "cross"
    """Which tokens see which. `cross`: context and candidate see each other (plain BERT). `shared`: the candidate sees
    the context, which sees only itself and is computed once for all its candidates. `split`: as `shared`, but below
    `split_layers` the candidate sees only itself, so that these layers can be computed once and stored. `towers`: they
    meet only in a product of two vectors."""
    split_layers: int = -1
    """Layers of `split` in which the candidate sees only itself; -1 is two thirds of them."""
    candidate_start: int = -1
    """Position at which every candidate starts (not in `cross`, where its positions run on); -1 is the end of the
    context's token budget. A position that the context uses too makes the two hard to tell apart."""
    readout: Literal["pooled", "first", "mean"] = "pooled"
    """What the head reads: BERT's pooled first token, the first token, or the mean over the tokens: of the pair in
    `cross`, of the candidate in the others (in `towers`, of each side)."""
    combine: Literal["text", "concat"] = "text"
    """How features besides text join the vectors that the head reads. `text`: they are stored, and not read.
    `concat`: each becomes a vector of the encoder's width, and a multi-layer perceptron over all of them is added to
    the text's."""
    hidden_size: int = 128
    """Width D of a fresh encoder."""
    num_layers: int = 2
    """Layers of a fresh encoder."""
    num_heads: int = 4
    """Attention heads of a fresh encoder."""
    intermediate_size: int = 512
    """Feed-forward width of a fresh encoder."""
    max_positions: int = 512
    """Position embeddings of a fresh encoder."""
    initializer_range: float = 0.02
    """Standard deviation of a fresh encoder's weights. BERT's 0.02 is for widths near 768; a narrow encoder starts to
    learn much sooner with about 1 / sqrt(width)."""
    hidden_dropout: float = -1.0
    """Dropout of hidden states; below 0 keeps the checkpoint's (0.1 for a fresh encoder)."""
    attention_dropout: float = -1.0
    """Dropout of attention probabilities; below 0 keeps the checkpoint's (0.1 for a fresh encoder)."""
    head_dropout: float = 0.1
    """Dropout before the head."""
    dtype: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Compute type; `auto` is bfloat16 on GPU and TPU and float32 on CPU. `float8` is bfloat16 but for the products
    with the encoder's weights (Ada and Hopper GPUs and later, the extra [float8]; CPUs only to try it). Parameters and
    losses stay float32."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """What computes attention: plain XLA, splash attention (TPU) or cuDNN (GPU). The last two are compared with a
    reference on the devices before they are used, and have no dropout: they train only with `attention_dropout` 0.
    `auto` times what is proven and takes the fastest, which may differ from start to start where two are close: a run
    that must go on to the last bit on GPU or TPU names one. Scoring chooses anew for its own devices."""
    remat: Literal["none", "dots", "full"] = "none"
    """What a layer's gradient computes again instead of keeping it in memory: nothing; all but the results of products
    with weights; or everything but the layer's input (the least memory, a third more arithmetic)."""


# ---------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Mesh:
    """Sizes of the device mesh; one of them may be -1 (the rest of the devices)."""

    data: int = -1
    """Rows are divided; parameters are copied."""
    fsdp: int = 1
    """Rows are divided; parameters and optimizer state too."""
    tensor: int = 1
    """Heads and feed-forward width are divided."""


@dataclass(frozen=True)
class Batch:
    """The shape of a packed batch."""

    rows: int = 32
    """Rows R of one optimizer step over all devices. A row holds as many examples (candidates with their contexts) as
    fit, so that a step has many times as many examples as rows; the start of a run says how many."""
    examples: int = 0
    """Examples of one optimizer step to aim at, instead of `rows`: above 0, the rows are chosen by the lengths in the
    store."""
    tokens: int = 128
    """Token slots L of a row; at least the budgets of one pair together."""
    candidates: int = 0
    """Candidate slots C of a row; 0 chooses by the lengths in the store."""
    micro_batches: int = 1
    """Parts the step is computed in, to save memory; the result is the same but for dropout's random bits."""
    eval_rows: int = 0
    """Rows of an evaluation or scoring batch; 0 means as many as one micro-batch."""
    workers: int = 0
    """Grain worker processes that assemble batches; 0 assembles them in threads of this process."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with an optimizer of their own; the schedule is that of `Optimizer`."""

    match: str = ""
    """Regular expression that is found in the paths of its parameters (`^bert/embeddings/`); a parameter belongs to
    the first group that matches."""
    name: str = ""
    """Name of its optimizer; empty means that of `Optimizer`."""
    learning_rate: float = 0.0
    """Peak learning rate; 0 means that of `Optimizer`."""
    args: dict[str, float] = field(default_factory=dict)
    """Further arguments of its optimizer by name."""


@dataclass(frozen=True)
class Optimizer:
    """The optimizer, its schedule, and what is decayed and scaled."""

    name: str = "adamw"
    """Name of an optimizer in `optax` or `optax.contrib` (adamw, adam, sgd, lion, adafactor, ...)."""
    learning_rate: float = 3e-5
    """Peak learning rate."""
    args: dict[str, float] = field(default_factory=dict)
    """Further arguments of the optimizer by name (`b2`, `eps`, `momentum`, ...)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up; linear and cosine end at 0."""
    warmup: float = 0.1
    """Warm-up steps if >= 1, else as a share of all steps."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, normalisation and position tables are not decayed. Only for
    optimizers that take it."""
    layer_decay: float = 1.0
    """Layer-wise learning-rate decay: the head has multiplier 1, each layer below it this times the one above."""
    head_multiplier: float = 1.0
    """Learning-rate multiplier of head parameters."""
    clip_norm: float = 1.0
    """Largest global gradient norm, over all groups; 0 turns clipping off."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter paths that are not trained (`^bert/embeddings/`, `^bert/layers/[0-5]/`): they
    have no gradient and no optimizer state."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with an optimizer of their own; all others take this one."""


@dataclass(frozen=True)
class Evaluate:
    """When validation runs and which metric decides."""

    every: int = 0
    """Steps between evaluations; 0 means at the end of each epoch."""
    monitor: str = ""
    """Metric that chooses the best checkpoint and stops early (see `srsjax.metrics.table`); of the first task, or
    `task/metric`. Empty means that of the first task's kind: `auc`, or `ndcg@k` of a listwise one."""
    mode: Literal["auto", "max", "min"] = "auto"
    """Whether larger or smaller is better; `auto` knows the built-in metrics."""
    patience: int = 0
    """Stop after this many evaluations without a better value; 0 never stops early."""
    threshold: float = 0.5
    """Threshold of accuracy, precision, recall and F1."""
    ndcg_at: int = 10
    """k of NDCG@k."""


@dataclass(frozen=True)
class Checkpoints:
    """What is kept on disk."""

    every: int = 0
    """Steps between checkpoints for resuming, besides those at evaluations; 0 means only those."""
    keep: int = 2
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
    evaluate: Evaluate = Evaluate()
    """Validation."""
    checkpoints: Checkpoints = Checkpoints()
    """Checkpoints."""
    profile: Profile = Profile()
    """Traces."""
    epochs: float = 1.0
    """Passes over the training rows (may be a fraction)."""
    max_steps: int = 0
    """Stop after this many optimizer steps; 0 means `epochs` decides."""
    log_every: int = 10
    """Steps between log lines; the host waits for the device only then."""
    seed: int = 0
    """Seed of initialisation, order, packing and dropout."""
    run_dir: str = ""
    """Run folder; empty means `runs/<config name>`."""
    overwrite: bool = False
    """Delete what the run folder holds and start anew."""


def columns(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """A field that takes one column or several, as a tuple."""
    return ((value,) if value else ()) if isinstance(value, str) else tuple(value)
