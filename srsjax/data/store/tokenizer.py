"""Text to token ids: tokenizers from Hugging Face folders or the hub, and fresh WordPiece vocabularies.

All text goes through one `tokenizers.Tokenizer` without truncation, padding or special tokens: truncation to budgets
and [CLS] and [SEP] around a pair are applied to integers later, by the `PairTemplate` that is detected here.
`transformers` takes seconds to import, so it is used only for folders that `tokenizers` alone might read differently.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.files import write_text
from srsjax.hub import model_folder, read_json

# Roles a token can have, as tokenizer_config.json names them ("pad" -> "pad_token").
ROLES = ("pad", "unk", "cls", "sep", "mask")
BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model")
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
# Texts encoded at a time, which bounds the Python objects that are alive at once.
ENCODE_BATCH = 8192
# Characters of a word to train on: the trainer takes time quadratic in them, hours for a megabyte without a space. Such
# words teach nothing: WordPiece makes [UNK] of all with more than 100.
LONGEST_WORD = 1000


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens a tokenizer puts around texts, as ids.

    A pair is `prefix + context + between` with token type 0, then `opening + candidate + suffix` with token type
    `candidate_type`. A single text is `prefix + candidate + suffix`, all of type 0.
    """

    prefix: tuple[int, ...]
    """Before everything: [CLS]."""
    between: tuple[int, ...]
    """After the context: [SEP]; RoBERTa has two."""
    suffix: tuple[int, ...]
    """After the candidate: [SEP]."""
    candidate_type: int
    """Token type of the candidate and the suffix in a pair: 1 for BERT, 0 for RoBERTa."""
    separator: int
    """Put between the fields of one side."""
    opening: tuple[int, ...] = ()
    """Before the candidate; none where it goes on after a context."""

    def apart(self) -> PairTemplate:
        """Context and candidate as a sequence each, `prefix + text + suffix` of type 0: what encoders of single
        sentences were trained on."""
        return replace(self, between=self.suffix, opening=self.prefix, candidate_type=0)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer with what the token store needs. Thread-safe; made by the functions below."""

    tokenizer: Tokenizer
    """Without truncation and padding."""
    special: dict[str, str]
    """The token of each of `ROLES`, where the tokenizer has one."""
    template: PairTemplate
    """The special tokens around a pair."""

    def encode(self, texts: Sequence[str | None], max_tokens: int) -> tuple[Ragged, int]:
        """Token ids of each text, without special tokens, cut at the end to at most `max_tokens`.

        A text that spells a special token ("[SEP]") is tokenised as plain characters. None is an empty text.

        Returns the ids ([n] ragged int32) and how many texts were cut.
        """
        rows: list[list[int]] = []
        for start in range(0, len(texts), ENCODE_BATCH):
            batch = [text or "" for text in texts[start : start + ENCODE_BATCH]]
            rows += [encoding.ids for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        cut = sum(len(row) > max_tokens for row in rows)
        return Ragged.from_rows([row[:max_tokens] for row in rows], np.int32), cut

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        found = self._id("pad")
        assert found is not None, "load_tokenizer refuses a tokenizer without one"
        return found

    @property
    def unk_id(self) -> int | None:
        """Id of the unknown-word token; None where the tokenizer has none."""
        return self._id("unk")

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token; None where the tokenizer has none."""
        return self._id("mask")

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the serialised tokenizer: equal fingerprints give equal ids."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `load_tokenizer` and `transformers.AutoTokenizer` load, with the same ids."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        inputs = ["input_ids", "attention_mask"]
        if self.template.candidate_type:
            inputs.insert(1, "token_type_ids")
        # PreTrainedTokenizerFast uses tokenizer.json as it is; a model-specific class would rebuild it.
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
        config |= {f"{role}_token": token for role, token in self.special.items()}
        write_text(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))

    def _id(self, role: str) -> int | None:
        token = self.special.get(role)
        return None if token is None else self.tokenizer.token_to_id(token)


def load_tokenizer(source: str | Path) -> TextEncoder:
    """The tokenizer of a Hugging Face folder or hub name (`org/model`), of BERT's or RoBERTa's kind.

    Raises InputError if there is no such folder or hub name, no tokenizer in it, one that exists only as Python code,
    or one that does not put special tokens around pairs as BERT and RoBERTa do.
    """
    folder = model_folder(str(source), TOKENIZER_FILES + SETTINGS_FILES, "tokenizer.json or vocab.txt")
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise InputError(f"{source}: no tokenizer there, expected tokenizer.json or vocab.txt")
    tokenizer, special = _read_plain(folder) or _read_with_transformers(folder)
    return _text_encoder(tokenizer, special, f"{source}")


def train_tokenizer(texts: Iterable[str | None], vocab_size: int, lowercase: bool) -> TextEncoder:
    """A fresh BERT tokenizer: a WordPiece vocabulary of at most `vocab_size` trained on `texts` (read once, streamed).

    Words are split at spaces and punctuation and every Chinese character is a word; with `lowercase`, text is
    lower-cased and accents are stripped. The same texts give the same vocabulary, whatever their order. At most half
    of it is single characters, most frequent first; a word with a rarer character becomes [UNK].

    Raises InputError if `vocab_size` leaves no room for characters or the texts contain no word.
    """
    if vocab_size < 100:
        raise InputError(f"tokenizer.vocab_size: found {vocab_size}, expected at least 100")
    plain = _bert_tokenizer(models.WordPiece(unk_token=BERT_TOKENS["unk"]), lowercase=lowercase)
    words = _count_words(texts, plain)
    if not words:
        raise InputError("tokenizer: no text to train a vocabulary on; check the text columns of the schema")
    tokenizer = _bert_tokenizer(_train_wordpiece(words, vocab_size), lowercase=lowercase)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in BERT_TOKENS.values()])
    tokenizer.post_processor = _bert_template(tokenizer)
    return _text_encoder(tokenizer, BERT_TOKENS, "trained tokenizer")


def _count_words(texts: Iterable[str | None], tokenizer: Tokenizer) -> Counter[str]:
    words: Counter[str] = Counter()
    for batch in itertools.batched((text for text in texts if text), 1000):
        text = tokenizer.normalizer.normalize_str("\n".join(batch))
        split = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        words.update(word for word, _ in split if len(word) <= LONGEST_WORD)
    return words


def _train_wordpiece(words: Counter[str], vocab_size: int) -> models.WordPiece:
    """A WordPiece model from word counts; the same counts give the same model.

    The trainer of `tokenizers` numbers "##x" pieces in the order of a hash map that differs from run to run, and breaks
    ties by those numbers. Passing all of them beforehand as special tokens fixes the order; for that the words are
    counted first, and given to the trainer as lines of repeated words.
    """
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for at, character in enumerate(word):
            pieces["##" + character if at else character] += count
    ranked = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    kept = sorted(ranked[: vocab_size // 2 - len(BERT_TOKENS)])
    characters = sorted({piece.removeprefix("##") if len(piece) > 1 else piece for piece in kept})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*BERT_TOKENS.values(), *kept],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    bare = Tokenizer(models.WordPiece(unk_token=BERT_TOKENS["unk"]))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare.train_from_iterator(_repeated(words), trainer)
    return models.WordPiece(bare.get_vocab(), unk_token=BERT_TOKENS["unk"])


def _repeated(words: Counter[str], line: int = 1000) -> Iterator[str]:
    """Every word repeated as often as it was counted, at most `line` times per line."""
    for word, count in sorted(words.items()):
        for start in range(0, count, line):
            yield " ".join([word] * min(line, count - start))


def _text_encoder(tokenizer: Tokenizer, special: dict[str, str], name: str) -> TextEncoder:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[SEP]" in a product title is text, not structure
    special = {role: token for role, token in special.items() if tokenizer.token_to_id(token) is not None}
    if "pad" not in special:
        raise InputError(f"{name}: the tokenizer has no padding token; name one as pad_token in tokenizer_config.json")
    return TextEncoder(tokenizer, special, _find_template(tokenizer, name))


def _find_template(tokenizer: Tokenizer, name: str) -> PairTemplate:
    """Detects the template from one encoded pair and checks it on the pair and on a single text."""
    try:
        pair, single = tokenizer.encode("one", "two"), tokenizer.encode("one")
    except Exception as error:  # as Rust raises it: a vocabulary without its unknown token
        raise InputError(f"{name}: the tokenizer cannot read a text ({error}); get its files again") from None
    side = np.array([-1 if s is None else s for s in pair.sequence_ids])
    in_first, in_second = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if len(in_first) and len(in_second):
        prefix = tuple(pair.ids[: in_first[0]])
        between = tuple(pair.ids[in_first[-1] + 1 : in_second[0]])
        suffix = tuple(pair.ids[in_second[-1] + 1 :])
        kind = pair.type_ids[in_second[0]]
        types = [0] * int(in_second[0]) + [kind] * (len(pair.ids) - int(in_second[0]))
        alone = [*prefix, *(pair.ids[i] for i in in_first), *suffix]
        if (
            prefix
            and between
            and suffix
            and pair.type_ids == types
            and single.ids == alone
            and not any(single.type_ids)
        ):
            return PairTemplate(prefix, between, suffix, kind, separator=suffix[0])
    raise InputError(
        f"{name}: the tokenizer makes {' '.join(pair.tokens)} of a pair, expected [CLS] one [SEP] two [SEP]; "
        "use a tokenizer of BERT's or RoBERTa's kind"
    )


# ---------------------------------------------------------------------------------------------- reading folders


def _read_plain(folder: Path) -> tuple[Tokenizer, dict[str, str]] | None:
    """Reads the folder without transformers; None if only transformers can interpret its files together."""
    settings = _settings(folder / "tokenizer_config.json")
    kind = settings.get("tokenizer_class") or _settings(folder / "config.json").get("model_type", "")
    if not isinstance(kind, str):
        raise InputError(
            f"{folder}: found tokenizer_class or model_type {kind!r}, expected a name; get the files again"
        )
    kind = kind.removesuffix("Fast")
    special = _special_tokens(folder, settings)
    if kind in ("PreTrainedTokenizer", "TokenizersBackend") and (folder / "tokenizer.json").exists():
        return _from_file(folder / "tokenizer.json"), special
    if kind not in ("BertTokenizer", "bert", "") or (folder / "added_tokens.json").exists():
        return None
    # As in transformers, BERT's settings in tokenizer_config.json override those in tokenizer.json.
    options = {
        "lowercase": settings.get("do_lower_case", True),
        "chinese": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
    }
    special = BERT_TOKENS | special
    if (folder / "tokenizer.json").exists():
        tokenizer = _from_file(folder / "tokenizer.json")
        expected = _bert_tokenizer(tokenizer.model, **options)
        same = _parts(tokenizer) == _parts(expected) and tokenizer.post_processor is not None
        return (tokenizer, special) if same or not kind else None
    if not (folder / "vocab.txt").exists():
        return None
    words = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = {word: number for number, word in enumerate(words)}
    missing = [special[role] for role in ROLES if special[role] not in vocabulary]
    if missing:
        raise InputError(f"{folder / 'vocab.txt'}: found no {', '.join(missing)}; expected a BERT vocabulary")
    tokenizer = _bert_tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]), **options)
    tokenizer.add_special_tokens([AddedToken(special[role], special=True, normalized=False) for role in ROLES])
    tokenizer.post_processor = _bert_template(tokenizer, special)
    return tokenizer, special


def _read_with_transformers(folder: Path) -> tuple[Tokenizer, dict[str, str]]:
    from transformers import AutoTokenizer

    advice = "save it as tokenizer.json (a fast tokenizer) or use another tokenizer"
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers lets exceptions of its readers through
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder}: transformers cannot load this tokenizer ({reason}); {advice}") from error
    if not loaded.is_fast:
        raise InputError(f"{folder}: {type(loaded).__name__} exists only as Python code; {advice}")
    tokens = {role: getattr(loaded, f"{role}_token", None) for role in ROLES}
    return loaded.backend_tokenizer, {role: str(token) for role, token in tokens.items() if token is not None}


def _special_tokens(folder: Path, settings: dict) -> dict[str, str]:
    named = _settings(folder / "special_tokens_map.json") | settings
    tokens = {role: named.get(f"{role}_token") for role in ROLES}
    texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in tokens.items()}
    if wrong := [role for role, text in texts.items() if not isinstance(text, str | None)]:
        raise InputError(f"{folder}: found {texts[wrong[0]]!r} as {wrong[0]}_token, expected text; get the files again")
    return {role: text for role, text in texts.items() if text}


def _settings(path: Path) -> dict:
    """A settings file; {} if it does not exist."""
    return read_json(path) if path.exists() else {}


def _from_file(path: Path) -> Tokenizer:
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust parser raises bare Exception
        raise InputError(f"{path}: not a tokenizer of the tokenizers library ({error}); get the file again") from error
    if lost := _lost_tokens(json.loads(made.to_str())["post_processor"]):
        raise InputError(
            f"{path}: its template names {lost[0]!r}, which is none of its special tokens; get the file again"
        )
    return made


def _lost_tokens(processor: dict | None) -> list[str]:
    """The tokens of a template that it does not know: the library ends the program where it is used."""
    if not processor:
        return []
    known, pieces = processor.get("special_tokens", {}), (*processor.get("single", ()), *processor.get("pair", ()))
    named = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
    inner = [token for each in processor.get("processors", ()) for token in _lost_tokens(each)]
    return [token for token in named if token not in known] + inner


# ---------------------------------------------------------------------------------------------- BERT's tokenizer


def _bert_tokenizer(
    model: models.Model, lowercase: bool, chinese: bool = True, strip_accents: bool | None = None
) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bert_template(tokenizer: Tokenizer, special: dict[str, str] = BERT_TOKENS) -> processors.PostProcessor:
    cls, sep = special["cls"], special["sep"]
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _parts(tokenizer: Tokenizer) -> tuple[bytes | None, ...]:
    """The parts that split text into words, serialised for comparison."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    return tuple(part and part.__getstate__() for part in parts)
