"""Tokenizers: the ids and special tokens are those of transformers, and a trained vocabulary is reproducible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, processors

from srsjax.data.store.tokenizer import TextEncoder, load_tokenizer, train_tokenizer
from srsjax.errors import InputError

CORPUS = [
    "red linen summer dress",
    "a warm dress of red wool, hand-stitched",
    "红色 亚麻 夏季 连衣裙",
    "手工 缝制 的 羊毛 外套",
    "Café crème -- thin, fades quickly!",
    "dresses dressed undressed",
    "linen linens summer summers",
] * 3

# Letters of several scripts, punctuation, spaces and control characters, without unpaired surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(CORPUS)


@pytest.fixture(scope="module")
def minilm() -> Path:
    if "SRSJAX_MINILM" not in os.environ:
        pytest.skip("SRSJAX_MINILM does not name a folder with all-MiniLM-L6-v2")
    return Path(os.environ["SRSJAX_MINILM"])


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """A RoBERTa folder as people have it: tokenizer.json, its class and its special tokens."""
    folder = tmp_path_factory.mktemp("roberta")
    special = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(CORPUS, vocab_size=400, special_tokens=list(special.values()), show_progress=False)
    backend = tokenizer._tokenizer
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", backend.token_to_id("</s>")), ("<s>", backend.token_to_id("<s>")), add_prefix_space=False
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {f"{role}_token": token for role, token in special.items()} | {"cls_token": "<s>", "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "RobertaTokenizer"}))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_tokenizer(CORPUS, vocab_size=200, lowercase=True).save(folder)
    return folder


def ids(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.encode([text], max_tokens=1000)[0][0].tolist()


@pytest.mark.parametrize("folder", ["minilm", "roberta", "trained"])
def test_assembled_pairs_equal_those_of_transformers(folder, request):
    folder = request.getfixturevalue(folder)
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = load_tokenizer(folder)
    template = encoder.template

    @settings(max_examples=150, deadline=None)
    @given(TEXTS, TEXTS)
    def check(context, candidate):
        first, second = ids(encoder, context), ids(encoder, candidate)
        left = [*template.prefix, *first, *template.between]
        right = [*second, *template.suffix]
        # In lists: asked for one pair with an empty second text, transformers encodes a single text.
        expected = reference([context], [candidate], return_token_type_ids=True, truncation=False, padding=False)
        assert left + right == expected["input_ids"][0]
        assert [0] * len(left) + [template.candidate_type] * len(right) == expected["token_type_ids"][0]
        alone = reference(candidate, return_token_type_ids=True, truncation=False, padding=False)
        assert [*template.prefix, *right] == alone["input_ids"]

    check()
    assert encoder.pad_id == reference.pad_token_id
    assert encoder.unk_id == reference.unk_token_id
    assert encoder.mask_id == reference.mask_token_id
    assert encoder.template.separator == reference.sep_token_id
    assert encoder.vocab_size == len(reference)


def test_roberta_has_two_separators_and_one_token_type(roberta):
    template = load_tokenizer(roberta).template
    assert len(template.between) == 2
    assert template.candidate_type == 0


def test_padding_and_truncation_settings_of_the_file_are_switched_off(trained, tmp_path):
    tokenizer = load_tokenizer(trained).tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    load_tokenizer(trained).save(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "red linen summer dress red linen summer dress"
    assert ids(load_tokenizer(tmp_path), text) == ids(load_tokenizer(trained), text)
    assert len(ids(load_tokenizer(tmp_path), text)) >= 8


def test_long_texts_are_cut_at_the_end_and_counted(trained):
    encoder = load_tokenizer(trained)
    whole, cut = encoder.encode(["red linen dress", None, "", "dress"], max_tokens=100)
    assert cut == 0
    assert whole.values.dtype == np.int32
    assert list(whole.lengths[1:3]) == [0, 0]
    short, cut = encoder.encode(["red linen dress", None, "", "dress"], max_tokens=2)
    assert cut == 1
    np.testing.assert_array_equal(short[0], whole[0][:2])
    np.testing.assert_array_equal(short[3], whole[3])


def test_a_text_that_spells_a_special_token_is_text(trained):
    encoder = load_tokenizer(trained)
    special = {encoder.pad_id, encoder.mask_id, *encoder.template.prefix, encoder.template.separator}
    assert not special & set(ids(encoder, "dress [SEP] [CLS] [PAD] [MASK] red"))


@pytest.mark.parametrize("folder", ["roberta", "trained"])
def test_a_saved_tokenizer_is_the_same_tokenizer(folder, request, tmp_path):
    encoder = load_tokenizer(request.getfixturevalue(folder))
    encoder.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == encoder.fingerprint
    assert again.template == encoder.template
    assert (again.pad_id, again.unk_id, again.mask_id) == (encoder.pad_id, encoder.unk_id, encoder.mask_id)
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ("token_type_ids" in reference("a", "b")) == (encoder.template.candidate_type == 1)
    for text in CORPUS:
        assert reference(text, add_special_tokens=False)["input_ids"] == ids(encoder, text)


def test_a_folder_with_vocab_txt_alone_is_read_as_bert(minilm, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    encoder, reference = load_tokenizer(tmp_path), load_tokenizer(minilm)
    assert encoder.template == reference.template
    for text in CORPUS:
        assert ids(encoder, text) == ids(reference, text)


def test_cased_vocabulary_follows_the_settings(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Dress", "dress"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert ids(load_tokenizer(tmp_path), "Dress dress") == [5, 6]


# The hash maps of the trainer are seeded anew in each process, so only other processes can show a dependence.
TRAIN = """
import random, sys
from srsjax.data.store.tokenizer import train_tokenizer
rng = random.Random(1)
words = ["".join(rng.choices("abcdefgh红色亚麻", k=rng.randint(1, 6))) for _ in range(300)]
texts = [" ".join(rng.choices(words, k=5)) for _ in range(400)]
random.Random(int(sys.argv[1])).shuffle(texts)
print(train_tokenizer(texts, vocab_size=300, lowercase=True).fingerprint)
"""


def test_training_depends_on_the_texts_and_on_nothing_else():
    runs = [subprocess.run([sys.executable, "-c", TRAIN, seed], capture_output=True, text=True) for seed in "0012"]
    assert {run.returncode for run in runs} == {0}, runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


def test_a_trained_vocabulary_knows_its_words():
    encoder = train_tokenizer(iter([*CORPUS, None]), vocab_size=200, lowercase=True)
    assert encoder.vocab_size <= 200
    assert len(ids(encoder, "dress")) == 1  # a frequent word is one piece
    assert ids(encoder, "DRESS") == ids(encoder, "dress")
    assert len(ids(encoder, "连衣裙")) == 3  # Chinese characters stand apart
    assert encoder.unk_id not in ids(encoder, " ".join(CORPUS))
    cased = train_tokenizer(["Dress dress"] * 3, vocab_size=100, lowercase=False)
    assert ids(cased, "Dress") != ids(cased, "dress")


def test_rare_characters_do_not_crowd_out_the_vocabulary():
    rare = ["".join(chr(0x4E00 + i) for i in range(500))]
    encoder = train_tokenizer([*CORPUS, *rare], vocab_size=200, lowercase=True)
    assert encoder.vocab_size <= 200
    assert encoder.unk_id in ids(encoder, rare[0])


def test_bad_sources_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no tokenizer there, expected tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no such folder, and the Hugging Face hub did not give it"):
        load_tokenizer("nobody-at-all/no-such-model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


def test_vocab_without_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\ndress\n")
    with pytest.raises(InputError, match=r"found no \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_exists_only_as_code_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(InputError, match="another tokenizer"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_special_tokens_around_pairs_is_refused(trained, tmp_path):
    encoder = load_tokenizer(trained)
    encoder.save(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    with pytest.raises(InputError, match=r"expected \[CLS\] one \[SEP\] two \[SEP\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["[SE", ""])
@pytest.mark.parametrize("nested", [False, True])
def test_a_template_whose_token_is_lost_is_refused(trained, tmp_path, nested, name):
    """The tokenizers library would end the program when it encodes."""
    load_tokenizer(trained).save(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"] = name
    if nested:
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"tokenizer\.json: its template names '(\[SE)?', which is none of"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_its_unknown_token_is_refused(trained, tmp_path):
    load_tokenizer(trained).save(tmp_path)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["unk_token"] = "[UN"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"the tokenizer cannot read a text \(.*UN.*\); get its files again"):
        load_tokenizer(tmp_path)


def test_loading_a_saved_tokenizer_imports_no_transformers(trained):
    code = (
        "import sys, srsjax.data.store.tokenizer as t; t.load_tokenizer(sys.argv[1]); "
        "print('transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(trained)], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def test_too_little_to_train_on_is_refused():
    with pytest.raises(InputError, match="no text to train"):
        train_tokenizer([None, ""], vocab_size=200, lowercase=True)
    with pytest.raises(InputError, match="found 10"):
        train_tokenizer(CORPUS, vocab_size=10, lowercase=True)


def test_a_word_without_end_does_not_keep_training(trained):
    """The trainer's time is quadratic in a word; it would take hours for this one."""
    word = "".join(np.random.default_rng(0).choice([*"abcdefgh"], 1_000_000))
    texts = ["red coat", "blue coat", "red hat", "blue hat"] * 3
    with_word = train_tokenizer([*texts, word], 120, lowercase=True)
    assert with_word.fingerprint == train_tokenizer(texts, 120, lowercase=True).fingerprint
    ids, cut = with_word.encode([word], 8)
    assert ids[0].tolist() == [with_word.unk_id] and cut == 0


@pytest.mark.parametrize("name, value", [("tokenizer_class", 7), ("pad_token", 7), ("pad_token", {"id": 3})])
def test_settings_of_another_type_are_refused(trained, tmp_path, name, value):
    load_tokenizer(trained).save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(InputError):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: found list, expected a JSON object"):
        load_tokenizer(tmp_path)
