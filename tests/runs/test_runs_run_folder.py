"""What a run folder lets happen to it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from srsjax.config import Batch, Mesh, Model, Optimizer, Profile, TrainConfig
from srsjax.errors import InputError
from srsjax.model.bert import BertConfig
from srsjax.runs.run_folder import RunFolder

CONFIG = TrainConfig()


@pytest.fixture
def create(tmp_path):
    """`create(config, fingerprint)`: the run folder of that config and data, in `run`."""
    (tmp_path / "tokenizer").mkdir()

    def make(config=CONFIG, fingerprint="a") -> RunFolder:
        folder = RunFolder(tmp_path / "run")
        folder.check(config)
        folder.create(config, tmp_path / "tokenizer", {"fingerprint": fingerprint}, {})
        return folder

    return make


def test_the_same_run_goes_on_and_another_is_refused(create):
    assert create().config() == CONFIG
    create(
        replace(CONFIG, mesh=Mesh(2), log_every=3, track=("wandb",), profile=Profile("2:3"))
    )  # changes nothing of what is computed
    with pytest.raises(InputError, match=r"batch\.rows 32 there, 64 here; optimizer\.name 'adamw' there, 'sgd' here"):
        create(replace(CONFIG, optimizer=Optimizer(name="sgd"), batch=Batch(rows=64)))


def test_what_a_finished_run_is_trained_longer_with(create):
    folder = create()
    with pytest.raises(InputError) as unfinished:
        folder.check(replace(CONFIG, epochs=2.0))
    assert "--model.pretrained" not in str(unfinished.value)
    folder.report_file.write_text("{}")
    with pytest.raises(InputError) as finished:
        folder.check(replace(CONFIG, epochs=2.0))
    assert f"train on from its weights with --model.pretrained {folder.path} --run_dir NEW" in str(finished.value)
    with pytest.raises(InputError) as other:  # its weights may not fit
        folder.check(replace(CONFIG, epochs=2.0, model=Model(interaction="shared")))
    assert "--model.pretrained" not in str(other.value)


def test_a_run_does_not_go_on_with_other_data(create):
    create(fingerprint="a")
    with pytest.raises(InputError, match="its data changed since the run began"):
        create(fingerprint="b")
    create(replace(CONFIG, overwrite=True), fingerprint="b").check_data({"fingerprint": "b"})


def test_overwriting_deletes_the_earlier_run_and_nothing_else(create, tmp_path):
    folder = create()
    folder.report_file.write_text("{}")
    create(replace(CONFIG, overwrite=True, seed=1))
    assert not folder.finished and folder.config().seed == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tokenizer"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(create, tmp_path, overwrite):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/weights.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="no run"):
        create(replace(CONFIG, overwrite=overwrite))
    (tmp_path / "run/config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="model_type"):
        create(replace(CONFIG, overwrite=overwrite))
    assert (tmp_path / "run/weights.safetensors").read_bytes() == b"mine"


def test_files_of_another_type_are_refused_and_not_read(tmp_path):
    """Those of the first versions, which had no checksums."""
    (tmp_path / "config.json").write_text("[1]")
    assert RunFolder(tmp_path).precision() is None
    with pytest.raises(InputError, match=r"config\.json"):
        RunFolder(tmp_path).config()
    with pytest.raises(InputError, match="num_heads 0, expected at least 1"):
        BertConfig(100, num_heads=0)
