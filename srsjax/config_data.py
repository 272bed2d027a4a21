"""What is read: features, tasks, tables, cleaning and split. Config files import it from `srsjax.config`.

This module imports nothing but the standard library and `srsjax.bounds`, so that every command starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srsjax.bounds import AnyFloat, AtLeast0, AtLeast1, AtLeast100, NotNegative, Positive, Seed, Share, ShareBelow1

Missing = Literal["error", "drop", "constant", "mean", "median", "most_frequent", "indicator"]
Times = Literal["", "recency", "hour", "weekday"]
"""What is read of the times of a list; empty where it holds none."""


# ---------------------------------------------------------------------------------------------- features


Unknown = Literal["error", "drop", "missing"]
"""What becomes of a row whose key a catalogue lacks."""


@dataclass(frozen=True)
class Text:
    """A column of text, tokenised and read by the encoder."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    max_tokens: AtLeast1 = 32
    """Token budget of this field; longer text is cut at its end, and the cuts are counted in the manifest."""
    missing: Missing = "constant"
    """What a missing text becomes: `constant` puts `fill`, `most_frequent` the commonest text, `drop` leaves the
    row out, `error` stops. `mean` and `median` are refused for text."""
    fill: str = ""
    """The text that `missing="constant"` puts in."""
    private: bool = False
    """Whether its values stay out of reports (`report.html`, slices) and messages."""


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
    max_items: AtLeast1 = 10
    """Newest items that are read; older ones are cut and counted."""
    item_tokens: AtLeast1 = 16
    """Token budget of one item."""
    max_tokens: AtLeast1 = 64
    """Token budget of the whole history; the oldest items are cut first."""
    private: bool = False
    """Whether its values stay out of reports (`report.html`, slices) and messages."""


@dataclass(frozen=True)
class Categorical:
    """A column of categories (ids, brands, countries), stored as int32 ids; 0 is missing or unknown."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    hash_buckets: AtLeast0 = 0
    """Above 0, the id is 1 + hash modulo this; 0 keeps a vocabulary of the training rows."""
    min_count: AtLeast1 = 1
    """Values seen less often in the training rows are unknown (vocabulary only)."""
    missing: Missing = "constant"
    """What a missing value becomes: `constant` makes it id 0, or the category `fill`; `most_frequent`, `drop`,
    `error`."""
    fill: str = ""
    """The category that `missing="constant"` puts in; empty is id 0."""
    max_values: AtLeast1 = 1
    """Above 1 the column holds a list (genres, items bought), of which the first so many are read. A text cell holds a
    JSON list, or values separated by `|`."""
    of: str = ""
    """`catalogue.column`: the list holds keys of that catalogue, and this column of it is read for each of them. With
    `items.brand`, a list of the items bought becomes that of their brands."""
    pooling: Literal["mean", "attention", "transformer"] = "mean"
    """What the model makes of the embeddings of a list: their mean; with `like`, a sum whose weights say how much
    each has to do with the candidate's value of that feature (Deep Interest Network, Zhou et al. 2018); or what a small
    `transformer` reads in the list, newest first (as SASRec, Kang and McAuley 2018)."""
    like: str = ""
    """Another Categorical whose vocabulary and embeddings it shares: `item` for the items that a user bought before."""
    along: str = ""
    """Another list that this one says more of, element by element (when an item was bought, whether it was viewed or
    bought): its embeddings are added to those of that list before they are pooled."""
    times: Times = ""
    """The list holds dates, timestamps, ISO 8601 text or seconds. What is read of each: `recency`, how long before
    `until` it was, in powers of two of a second; `hour` of the day; `weekday`. Hours and days are those of UTC."""
    until: str = ""
    """Column of times that `times="recency"` counts up to: that of the request."""
    width: AtLeast0 = 0
    """Length of the embeddings; 0 is the model's width. Large tables want less, which a matrix maps to that width."""
    dropout: ShareBelow1 = 0.0
    """Share of the ids that become 0 in training, so that the model knows what to do with unknown ones."""
    training_only: bool = False
    """Whether it says how the candidate was shown (position, device) and not what it is: training reads it, evaluation
    and scoring put what a missing value becomes in its place (`fill`), and its column need not be there."""
    private: bool = False
    """Whether its values stay out of reports (`report.html`, slices) and messages."""


@dataclass(frozen=True)
class Numeric:
    """A column of numbers or times, stored as float32, unscaled; mean and standard deviation are in the manifest."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    missing: Missing = "error"
    """What a missing number becomes; mean, median and most frequent value are those of the training rows; `indicator`
    keeps it missing, and the model learns a vector for it."""
    fill: AnyFloat = 0.0
    """The number that `missing="constant"` puts in."""
    since: str = ""
    """Column of times, of the log or `catalogue.column`, that is taken off: the seconds since then (with `scale="log"`,
    how recently a user came or an item was listed). Both columns hold dates, timestamps, ISO 8601 text or seconds."""
    scale: Literal["standard", "log", "quantile", "cyclic"] = "standard"
    """How the model reads it: with the mean and standard deviation of the training rows taken off; the same of
    sign(x) log(1 + |x|), for prices and counts; as one of `buckets` with equally many training rows each; or `cyclic`,
    as the angle within a `period`: of a time, the hour of the day."""
    period: Positive = 86400.0
    """Of `scale="cyclic"`: seconds, for times. 86400 is a day, 604800 a week."""
    buckets: AtLeast1 = 32
    """Buckets of `scale="quantile"`."""
    training_only: bool = False
    """Whether it says how the candidate was shown (position) and not what it is: training reads it, evaluation and
    scoring put what a missing value becomes in its place (`fill`), and its column need not be there."""
    private: bool = False
    """Whether its values stay out of reports (`report.html`, slices) and messages."""


@dataclass(frozen=True)
class Vector:
    """A list column of `size` numbers (an image or sentence embedding), stored as float32; or a column that says where
    they are among `files`."""

    name: str
    """Name of the feature, unique in the schema."""
    column: str = ""
    """Column it is read from: `column` of the log, or `catalogue.column`; empty means `name` in the log."""
    size: AtLeast0 = 0
    """Length of every vector."""
    files: str = ""
    """A `.npy` file of shape [rows, `size`], of which the column holds the number of a row, from 0; or a folder, in
    which it names a file, with its ending or without: `.npy`, or a picture for `encoder`. A file that is not there is a
    missing value. `${NAME}` is replaced by an environment variable."""
    encoder: str = ""
    """Hugging Face folder or hub name of an image encoder (ViT, DINOv2, CLIP): `prepare` runs it once over the pictures
    below `files` and keeps their vectors beside the stores (the extra [images]; on a GPU where PyTorch has one)."""
    missing: Missing = "error"
    """What a missing vector becomes: `constant` fills it with `fill`; `indicator` keeps it missing, and the model
    learns a vector for it; `drop`, `error`."""
    fill: AnyFloat = 0.0
    """The number that `missing="constant"` fills a missing vector with."""


Feature = Text | History | Categorical | Numeric | Vector


Loss = Literal[
    "",
    "cross_entropy",
    "focal",
    "rcr",
    "squared",
    "huber",
    "softmax",
    "lambdarank",
    "logistic",
    "margin",
    "in_batch",
    "cosine",
]


@dataclass(frozen=True)
class Task:
    """One label to predict."""

    name: str = "click"
    """Name of the task, unique in the schema."""
    column: str = ""
    """Label column of the log; empty means `name`. It holds, by `kind`, 0, 1, true, false or a probability between; a
    grade of at least 0; a class (text or number); or any number. A missing label has weight 0."""
    positive: str = ""
    """Where the label column holds text: this value is 1, every other is 0. `>=8`: a number of at least 8 is 1. `*`:
    every row of the log is 1, and no column is read (with `data.negatives`)."""
    impressions: str = ""
    """Column of impression counts of aggregated rows: the label column then holds counts of clicks, the label
    becomes clicks / impressions and the weight is multiplied by the impressions."""
    weight: str = ""
    """Column of sample weights (>= 0)."""
    weight_power: NotNegative = 1.0
    """The training weight is the weight to this power; 0 treats every candidate alike, 1 keeps counts as they are.
    Evaluation always uses the weights as they are."""
    kind: Literal["binary", "listwise", "pairwise", "contrastive", "multiclass", "regression"] = "binary"
    """`binary`: the probability of a positive label; with `softmax` above 0 the loss is mixed with a listwise one.
    `listwise`: the order of an impression's candidates, by labels of any grade >= 0. `pairwise`: that order, by its
    pairs of different labels. `contrastive`: the vector of a context is near those of its positive candidates and far
    from all others in the batch (`towers`, for retrieval). `multiclass`: one of several classes. `regression`: a number
    as it is (a rating of 1 to 5, a price, a demand)."""
    classes: tuple[str, ...] = ()
    """Class names of a multiclass task, in the order of its outputs; another label is a bad row. Empty takes those of
    the training rows, sorted; a class that only other rows have is then an unknown label there, counted."""
    loss: Loss = ""
    """Loss; empty is the first of its kind. Binary: `cross_entropy`; `focal` (Lin et al. 2017); `rcr`, cross-entropy
    with a listwise part that has the same optimum, so that scores stay probabilities (Bai et al. 2023). Multiclass:
    `cross_entropy`. Regression, of labels in standard deviations: `squared`, `huber`. Listwise: `softmax` (ListNet),
    `lambdarank` (Burges 2010). Pairwise: `logistic` (RankNet, BPR), `margin`. Contrastive: `in_batch`, the softmax over
    all candidates of the batch, whose scores take the square of their number in float32; `cosine`, 1 - cosine where the
    label is 1 and max(0, cosine) where it is 0."""
    temperature: Positive = 0.05
    """Of a contrastive task: cosines are divided by it at first; the model learns the scale."""
    sampling_correction: bool = True
    """Whether the `in_batch` loss takes off the logarithm of each candidate's share of the training rows: popular items
    are in more batches, and would be pushed away more often than they should be (Yi et al. 2019)."""
    focal_gamma: NotNegative = 2.0
    """Exponent of the focal loss: how little well-classified candidates count; 0 is cross-entropy."""
    huber_delta: Positive = 1.0
    """Residual, in standard deviations of the label, from which on the Huber loss is linear."""
    margin: Positive = 1.0
    """By how much the better one of a pair should lead under the `margin` loss."""
    softmax: Share = 0.0
    """Share of the softmax cross-entropy (of the listwise part of `rcr`) in the loss of a binary task, 0 to 1. Its
    target is each candidate's share of weight ** weight_power * label within the impression."""
    label_smoothing: Share = 0.0
    """A binary label y becomes y (1 - s) + s / 2, the distribution p over K classes p (1 - s) + s / K."""
    after: str = ""
    """An earlier binary task that this binary task needs: a purchase comes after a click. Its score is then the product
    of the two probabilities, trained on every candidate shown and not on clicked ones alone (ESMM, Ma et al. 2018)."""
    loss_weight: NotNegative = 1.0
    """Weight of this task in the sum of losses."""


LABELS = {
    "binary": "probability",
    "listwise": "grade",
    "pairwise": "grade",
    "contrastive": "probability",
    "multiclass": "class",
    "regression": "number",
}
"""What the label column of each kind of task holds: a probability between 0 and 1, a grade of at least 0, the name of
a class, or any number."""

LOSSES = {
    "binary": ("cross_entropy", "focal", "rcr"),
    "listwise": ("softmax", "lambdarank"),
    "pairwise": ("logistic", "margin"),
    "contrastive": ("in_batch", "cosine"),
    "multiclass": ("cross_entropy",),
    "regression": ("squared", "huber"),
}
"""The losses of each kind of task, its default first."""


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
    unknown: Unknown = "error"
    """A log row whose key is not here: stop, leave the row out (counted), or treat its features as missing."""


@dataclass(frozen=True)
class Split:
    """Which rows train, validate and test."""

    by: Literal["hash", "time", "column"] = "hash"
    """By a hash of a key, by time (oldest train), or as a column says."""
    column: str | tuple[str, ...] = ()
    """Key column(s) for `hash` (default: `group_by`, else the whole row), the time column, or the column that holds
    the split; `catalogue.column` is allowed."""
    valid: Share = 0.1
    """Share of validation rows (hash, time)."""
    test: Share = 0.1
    """Share of test rows (hash, time)."""
    values: tuple[str, str, str] = ("train", "valid", "test")
    """What the column says for train, valid and test (column); rows with another value are left out, counted."""
    seed: Seed = 0
    """Changes the hash split."""


@dataclass(frozen=True)
class Shop:
    """The simulated shop (`srsjax.data.shop`): written once as Parquet files under `folder`."""

    folder: str = ""
    """Where its files are written; empty means no simulated data."""
    impressions: AtLeast1 = 16000
    """Result pages in the log."""
    page: AtLeast1 = 8
    """Candidates on a page."""
    items: AtLeast1 = 1200
    """Items of the catalogue."""
    users: AtLeast1 = 1500
    """Users."""
    seed: Seed = 0
    """Seed of everything in it."""
    signals: bool = False
    """Whether clicks also depend on what no text says: prices and incomes, image vectors, the quality of an item; and
    are followed by purchases and ratings (`srsjax.data.shop_signals`)."""


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
    """Columns copied into the file of scores; empty means a row number and every column that no text and no vector is
    read from."""
    unique: str | tuple[str, ...] = ()
    """Columns that identify a row: later rows with the same values are left out, counted; `*` means the whole row."""
    oracle: str = ""
    """Column with the known probability of the first task, where there is one (simulated data); reports then show
    the best attainable metrics."""
    negatives: AtLeast0 = 0
    """Items of the candidates' catalogue that are drawn for each row of the log, all items alike, and added to its
    impression with label 0: for logs of what was bought or viewed, which lack what was not. The same row draws the same
    items. Log-odds are then against drawn items: with V items, add log(negatives / V) for those against all."""
    negatives_by: str = ""
    """Column of the candidates' catalogue with numbers >= 0: how often each item is drawn, as a share of their sum (how
    often it was bought in training). Empty draws all alike."""
    private: tuple[str, ...] = ()
    """Columns (`column` of the log, or `catalogue.column`) whose values no message, no file of bad rows and no report
    shows; those of features with `private=True` are such too. What is learned from them is in the store and the run."""
    hash_key_env: str = ""
    """Name of an environment variable that holds a secret of at least 16 characters. The values of the column `user`,
    and of what it joins, are then read as keyed hashes (BLAKE2b) wherever they would be kept, in a store as in a
    vocabulary, and are private. Who knows the ids but not the secret cannot tell whose rows are whose. The same secret
    must be there to resume, to evaluate and to score. Empty keeps unkeyed hashes, which can be guessed."""
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
    workers: AtLeast0 = 0
    """Threads of the local engine; 0 is one for each core. The store is the same whatever their number."""


@dataclass(frozen=True)
class Tokenizer:
    """Where the tokenizer comes from."""

    source: str = ""
    """Hugging Face folder or hub name (`name@revision` too); empty means that of `model.pretrained`, and without one a
    WordPiece vocabulary is trained on the training rows."""
    vocab_size: AtLeast100 = 8000
    """Size of a trained vocabulary."""
    lowercase: bool = True
    """Whether a trained tokenizer lower-cases and strips accents."""


def columns(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """A field that takes one column or several, as a tuple."""
    return ((value,) if value else ()) if isinstance(value, str) else tuple(value)
