"""Models of the hub by name and revision, from a cache as the hub's client keeps it, without a network."""

from __future__ import annotations

import json

import jax
import pytest
from models import make_spec

from srsjax.config import Model
from srsjax.data.store.tokenizer import train_tokenizer
from srsjax.model import ctr, hf_export
from srsjax.model.bert import BertConfig
from srsjax.model.spec import Outputs

OLD, NEW = "a" * 40, "b" * 40
CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(context=(Text("query"),), candidate=(Text("title"),), tasks=(Task("click"),)),
        data=Data(log=Table("log.csv")),
        model=Model(pretrained="team/tiny"),
        batch=Batch(rows=4, tokens=96),
        max_steps=2,
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log, a config, and `hub` with two commits of a model; the main branch is the new one."""
    folder = tmp_path_factory.mktemp("hub")
    text = train_tokenizer(["red blue coat hat wool silk"] * 3, 200, lowercase=True)
    spec = make_spec(Model(interaction="cross", readout="pooled"), BertConfig(text.vocab_size, 16, 1, 2, 32, 128))
    spec = type(spec)(**{**vars(spec), "outputs": (Outputs("LABEL_0", "binary"),)})
    cache = folder / "hub" / "models--team--tiny"
    for seed, commit in enumerate((OLD, NEW)):
        hf_export.save_pairs(cache / "snapshots" / commit, ctr.init(spec, jax.random.key(seed)), spec, text, 64)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(NEW)
    (cache / "refs" / "v1").write_text(OLD)
    rows = [f"red coat {number},wool hat,{number % 2}" for number in range(200)]
    (folder / "log.csv").write_text("\n".join(["query,title,click", *rows]))
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture
def train(command, folder):
    def run(name: str, *options: str):
        hub = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
        return command("train", "--config", "tiny.py", "--run_dir", f"runs/{name}", *options, cwd=folder, **hub)

    return run


def recorded(folder, name: str) -> str:
    return json.loads((folder / f"runs/{name}/config.json").read_text())["model"]["pretrained"]


def test_the_commit_is_recorded_and_kept(train, folder):
    done = train("main")
    assert done.returncode == 0, done.stderr
    assert recorded(folder, "main") == f"team/tiny@{NEW}" and NEW in done.stdout
    (folder / "hub/models--team--tiny/refs/main").write_text(OLD)  # the model is updated meanwhile
    try:
        again = train("main")
        assert again.returncode == 0 and recorded(folder, "main") == f"team/tiny@{NEW}", again.stderr
        other = train("other")
        assert other.returncode == 0 and recorded(folder, "other") == f"team/tiny@{OLD}", other.stderr
    finally:
        (folder / "hub/models--team--tiny/refs/main").write_text(NEW)


def test_a_revision_may_be_named(train, folder):
    done = train("v1", "--model.pretrained", "team/tiny@v1")
    assert done.returncode == 0 and recorded(folder, "v1") == f"team/tiny@{OLD}", done.stderr
    refused = train("v1", "--model.pretrained", f"team/tiny@{NEW}")
    assert refused.returncode == 2 and "another config" in refused.stderr
    missing = train("v2", "--model.pretrained", "team/tiny@v2")
    assert missing.returncode == 2 and "team/tiny@v2" in missing.stderr and missing.stderr.count("\n") == 1
