"""Damaged, missing and swapped files of a store and of a run: each is refused by name, or changes no result.

One store and one run are made once, and another of the same shapes for files of the same name. A cell of the matrix is
a file and what became of it: cut to half, one bit flipped (at places drawn from a seed), deleted, swapped. What
training and scoring read is then loaded by the functions that the commands call, and compared with what was loaded
before, bit for bit. The default run takes some cells; all, with the table of what became of each:

    bash launch/local.sh test -m "slow or not slow" -n 0 -s tests/faults/test_faults_corruption.py
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from corruption_cases import ALL, copy, damage, every, files_of, flip, matrix, tell, write_data

from srsjax import cli, train
from srsjax.config_io import with_field
from srsjax.console import Console
from srsjax.data.batches.layout import Layout
from srsjax.data.batches.loader import eval_batches
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store import checksums
from srsjax.data.store.arrays import SPLITS, open_store, read_manifest, write_manifest
from srsjax.data.store.tokenizer import PairTemplate
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.runs.checkpoints import Checkpointer
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import open_session, state_target
from srsjax.runs.tables import optimizer_of
from srsjax.runs.warm_start import read_spec
from srsjax.training import goodput, show
from srsjax.training.log import RunLog


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders, each with data, a store and a finished run: the one that is damaged, and the other."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"made{seed}")
        write_data(folder, seed)
        with contextlib.chdir(folder):
            assert train.main(["--config", "config.py"]) == 0
        folders.append(folder)
    return folders


# ---------------------------------------------------------------------------------------------- stores


def digest(*arrays) -> str:
    found = hashlib.sha256()
    for array in arrays:
        host = np.ascontiguousarray(array)
        found.update(f"{host.dtype} {host.shape}".encode() + host.tobytes())
    return found.hexdigest()


def store_loader(folder: Path):
    """What `train` reads of the store in a copy of `stores/NAME`, as a digest."""
    with contextlib.chdir(folder):
        config = cli.read_config("config.py")

    def load(copied: Path) -> str:
        with contextlib.chdir(folder):
            store = prepare(with_field(config, "data.store", str(copied.parent)), log=lambda _: None)
        arrays = [store.items.tokens.values, store.items.tokens.offsets, *store.items.features.values()]
        assert store.items.features
        for name in SPLITS:
            split = store.split(name)
            assert split.oracle is not None and split.context_features and split.candidate_features
            arrays += [split.context.values, split.context.offsets, split.candidates, split.item, split.labels]
            arrays += [split.weights, split.example, split.user, split.oracle]
            arrays += [*split.context_features.values(), *split.candidate_features.values()]
        store.checks.wait()
        tokenizer = [np.frombuffer((copied / "tokenizer/tokenizer.json").read_bytes(), np.uint8)]
        kept = {key: value for key, value in store.manifest.items() if key not in ("seconds", "checksum")}
        return digest(*arrays, *tokenizer) + json.dumps(kept, sort_keys=True)

    return load


def store_matrix(made, tmp_path, kinds) -> dict:
    (source,), (other,) = ((folder / "stores").iterdir() for folder in made)
    cells = [(name, kind) for name in files_of(source) for kind in kinds]
    return matrix(source, tmp_path / "stores" / source.name, cells, other, store_loader(made[0]))


def test_a_damaged_file_of_a_store_is_refused_by_name(made, tmp_path):
    found = store_matrix(made, tmp_path, ("flip0", "delete"))
    tell("store", found)
    arrays = [said for (name, _), said in found.items() if name != "manifest.json"]
    assert len(arrays) > 40 and all(said.startswith("refused") for said in arrays)


@pytest.mark.slow
def test_the_whole_matrix_of_a_store(made, tmp_path):
    tell("store", store_matrix(made, tmp_path, ALL))


def test_a_store_without_checksums_is_prepared_again(made, tmp_path):
    (source,) = (made[0] / "stores").iterdir()
    load, copied = store_loader(made[0]), copy(source, tmp_path / "stores" / source.name)
    expected = load(copied)
    old = json.loads((copied / "manifest.json").read_text())
    del old["files"], old["checksum"]
    (copied / "manifest.json").unlink()
    (copied / "manifest.json").write_text(json.dumps(old))
    assert load(copied) == expected
    assert "files" in json.loads((copied / "manifest.json").read_text())


def test_a_file_that_a_store_did_not_have_changes_nothing_or_is_refused(made, tmp_path):
    (source,) = (made[0] / "stores").iterdir()
    load, copied = store_loader(made[0]), copy(source, tmp_path / "stores" / source.name)
    expected = load(copied)
    np.save(copied / "items/features/more.npy", np.zeros(12))
    np.save(copied / "train/extra.npy", np.zeros(12))
    assert load(copied) == expected
    (copied / "tokenizer/vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(InputError, match=r"tokenizer/vocab\.txt: found a file that the store did not have"):
        load(copied)


@pytest.fixture
def large(made, tmp_path, monkeypatch):
    """A copy of the store in which every file counts as large, and only its first 200 bytes are read before its use."""
    monkeypatch.setattr("srsjax.data.store.checksums.LARGE", 0)
    monkeypatch.setattr("srsjax.data.store.checksums.BLOCK", 200)
    (source,) = (made[0] / "stores").iterdir()
    copied = copy(source, tmp_path / source.name)
    described = {key: value for key, value in read_manifest(copied).items() if key not in ("files", "checksum")}
    (copied / "manifest.json").unlink()
    write_manifest(copied, described)
    return copied


def batches_of(store, name: str):
    layout = Layout(PairTemplate((1,), (2,), (2,), 1, 2), 0, True)
    return eval_batches(store.split(name), store.items, layout, rows=8, tokens=32)


def test_a_large_file_is_read_while_it_is_used_and_refused_then(large):
    flip(large / "train/labels.npy", -4)
    store = open_store(large)
    batches = batches_of(store, "train")
    with pytest.raises(InputError, match=r"train/labels\.npy: damaged: found CRC-32"):
        list(batches)
    assert "train/labels.npy: damaged" in str(checksums.damage())


def test_an_exception_that_comes_of_a_damaged_file_is_one_line(large, capsys, monkeypatch):
    """An item far beyond the last one is an IndexError, before the file has been read in the background."""
    monkeypatch.setattr(checksums, "_opened", weakref.WeakSet())  # without the stores of other tests
    flip(large / "train/item.npy", -1)
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda: len(list(batches_of(open_store(large), "train"))))
    error = capsys.readouterr().err
    assert "train/item.npy: damaged: found CRC-32" in error and error.count("\n") == 1


def test_the_head_of_a_large_file_is_read_before_its_use(large):
    flip(large / "train/labels.npy", 0)  # numpy would take it for a pickle
    with pytest.raises(InputError, match=r"train/labels\.npy: damaged: found CRC-32 .* of its head"):
        open_store(large).split("train")


def test_a_store_that_is_cut_while_it_is_used_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setattr("srsjax.data.store.checksums.SIZES_EVERY", 0)
    (source,) = (made[0] / "stores").iterdir()
    copied = copy(source, tmp_path / source.name)
    store = open_store(copied)
    store.split("train")
    store.checks.tell()
    damage(copied / "train/item.npy", "truncate", Path())
    with pytest.raises(InputError, match=r"train/item\.npy: found .* bytes, expected"):
        store.checks.tell()


# ---------------------------------------------------------------------------------------------- runs


def run_loader(folder: Path):
    """All that scores of the run depend on, as a digest."""

    def load(run: Path) -> str:
        with contextlib.chdir(folder):
            scorer = Scorer.load(run)
        about = [scorer.session.spec.to_json(), repr(scorer.config), repr(scorer.calibration), scorer.encoder.fitted]
        about += [scorer.encoder.text.fingerprint, scorer.encoder.text.special]
        params = [scorer.params[path] for path in sorted(scorer.params)]
        return digest(*params) + json.dumps(about, default=repr, sort_keys=True)

    return load


def of_checkpoint(name: str) -> tuple[str, ...]:
    """A checkpoint is named by its folder."""
    return (name, "/".join(name.split("/")[:2])) if name.startswith("checkpoints/") else (name,)


def best(folder: Path) -> str:
    return f"checkpoints/{RunFolder(folder / 'run').best_step()}"


def test_a_damaged_file_of_a_run_is_refused_by_name(made, tmp_path):
    names = ["config.json", "model.json", "manifest.json", "calibration.json", "checksums.json", "report.json"]
    names += ["tokenizer/tokenizer.json", f"{best(made[0])}/_CHECKPOINT_METADATA"]
    cells = [(name, kind) for name in names for kind in ("flip0", "swap", "delete")]
    data = next((made[0] / "run" / best(made[0]) / "params/d").iterdir())
    cells += [(data.relative_to(made[0] / "run").as_posix(), kind) for kind in ("flip0", "flip1", "truncate", "swap")]
    found = matrix(made[0] / "run", tmp_path / "run", cells, made[1] / "run", run_loader(made[0]), of_checkpoint)
    tell("run, to score", found)
    assert sum(said.startswith("refused") for said in found.values()) >= len(cells) - 4


@pytest.mark.slow
def test_the_whole_matrix_of_a_run_to_score(made, tmp_path):
    source = made[0] / "run"
    cells = every(source)
    tell("run, to score", matrix(source, tmp_path / "run", cells, made[1] / "run", run_loader(made[0]), of_checkpoint))


def test_a_file_beside_the_tokenizer_of_a_run_is_refused(made, tmp_path):
    run = copy(made[0] / "run", tmp_path / "run")
    (run / "tokenizer/added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer/added_tokens\.json: found a file that the run did not have"):
        run_loader(made[0])(run)


def test_the_checkpoint_of_another_run_is_refused(made, tmp_path):
    """All of it: each of its files is as it was written."""
    run = copy(made[0] / "run", tmp_path / "run")
    shutil.rmtree(run / best(made[0]))
    shutil.copytree(made[1] / "run" / "checkpoints" / "8", run / best(made[0]))
    with pytest.raises(InputError, match="of another checkpoint: step 8 of run"):
        run_loader(made[0])(run)


def test_a_run_without_checksums_is_loaded_with_a_note(made, tmp_path, capsys):
    """As it was written before there were any."""
    run = copy(made[0] / "run", tmp_path / "run")
    expected = run_loader(made[0])(run)
    config = json.loads((run / "config.json").read_text())
    del config["checksums"]
    for name in ("config.json", "checksums.json"):
        (run / name).unlink()
    (run / "config.json").write_text(json.dumps(config))
    path = run / best(made[0]) / "_CHECKPOINT_METADATA"
    about = json.loads(path.read_text())
    about["custom_metadata"] = about["custom_metadata"]["progress"]
    path.unlink()
    path.write_text(json.dumps(about))
    assert run_loader(made[0])(run) == expected
    assert capsys.readouterr().out.count("made before runs had checksums") == 1


# ---------------------------------------------------------------------------------------------- resuming


def resume_loader(folder: Path):
    """The state and the progress that training resumes from, as a digest; InputError where it is not the newest."""
    run = RunFolder(folder / "run")
    saved = json.loads((run.checkpoints / "8/_CHECKPOINT_METADATA").read_text())["custom_metadata"]["arrays"]
    params = {
        path.removeprefix("params/"): jax.ShapeDtypeStruct(each["shape"], each["dtype"])
        for path, each in saved.items()
        if path.startswith("params/")
    }
    with contextlib.chdir(folder):
        config = cli.read_config("config.py")
    session = open_session(config, read_spec(run))
    assert params.keys() == session.shapes.keys()
    target = state_target(session, optimizer_of(config.optimizer, 8, list(session.shapes), session.spec))

    def load(copied: Path) -> str:
        said: list[str] = []
        with Checkpointer(copied / "checkpoints", 2, RunFolder(copied).identity()) as checkpointer:
            state, progress = checkpointer.restore_newest(target, said.append)
        if said:
            assert len(said) == 1 and progress["next_step"] == 4 and int(state.step) == 4
            assert (copied / "damaged/8").is_dir() and not (copied / "checkpoints/8").exists()
            raise InputError(said[0])
        return digest(*jax.tree.leaves(state)) + json.dumps(progress)

    return load


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(made, tmp_path):
    data = next((made[0] / "run/checkpoints/8/rest/d").iterdir())
    cells = [
        (f"checkpoints/8/{name}", kind) for name in ("_CHECKPOINT_METADATA",) for kind in ("delete", "flip1", "swap")
    ]
    cells += [(data.relative_to(made[0] / "run").as_posix(), kind) for kind in ("flip0", "delete")]
    load = resume_loader(made[0])
    found = matrix(made[0] / "run", tmp_path / "run", cells, made[1] / "run", load, of_checkpoint)
    tell("run, to resume", found)
    assert sum(said.startswith("refused") for said in found.values()) >= len(cells) - 1

    run = copy(made[0] / "run", tmp_path / "run")
    for step in (4, 8):
        damage(run / f"checkpoints/{step}/_CHECKPOINT_METADATA", "delete", Path())
    with pytest.raises(InputError, match="there is no other"):
        load(run)


@pytest.mark.slow
def test_the_whole_matrix_of_a_run_to_resume(made, tmp_path):
    source = made[0] / "run"
    cells = every(source, "checkpoints/")
    load = resume_loader(made[0])
    tell("run, to resume", matrix(source, tmp_path / "run", cells, made[1] / "run", load, of_checkpoint))


@pytest.mark.parametrize("name", ["metrics.jsonl", "goodput.jsonl", "report.json"])
def test_a_damaged_output_of_a_run_has_no_traceback(made, tmp_path, name):
    """Lines that cannot be read are left out of what is only told; the report is refused where it cannot be shown."""
    read = RunFolder(made[0] / "run").path
    for kind in ("truncate", *(f"flip{n}" for n in range(40))):
        run = RunFolder(tmp_path / "run")
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.mkdir()
        for each in ("metrics.jsonl", "goodput.jsonl", "report.json", "config.json"):
            shutil.copy(read / each, run.path / each)
        damage(run.path / name, kind, Path())
        with contextlib.suppress(InputError):
            show.finished(Console(file=io.StringIO()), run, run.config())
        assert set(goodput.account(goodput.read(run.goodput_file))) == set(goodput.PARTS)
        with RunLog(run, 8, 8, Console(file=io.StringIO())):
            pass


# ---------------------------------------------------------------------------------------------- as commands


@pytest.mark.slow
def test_commands_refuse_in_one_line(made, tmp_path, command):
    folder = tmp_path / "folder"
    (name,) = (path.name for path in (made[0] / "stores").iterdir())

    def refused(file: str, kind: str, *arguments: str, says: str = "") -> None:
        copy(made[0], folder)
        damage(folder / file, kind, made[1] / file)
        done = command(*arguments, cwd=folder)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
        assert (says or Path(file).name) in done.stderr

    scoring = ("score", "--run", "run", "--input", "log.csv")
    refused("run/tokenizer/tokenizer.json", "swap", *scoring)
    data = next((made[0] / "run" / best(made[0]) / "params/d").iterdir())
    refused(data.relative_to(made[0]).as_posix(), "flip1", "evaluate", "--run", "run", says=best(made[0]))
    refused("run/model.json", "truncate", "evaluate", "--run", "run")
    refused("run/config.json", "flip0", "export", "--run", "run")
    refused(f"stores/{name}/test/oracle.npy", "delete", "evaluate", "--run", "run")
    refused(f"stores/{name}/train/item.npy", "flip0", "prepare", "--config", "config.py", "--verify")
    copy(made[0], folder)
    done = command("prepare", "--config", "config.py", "--verify", cwd=folder)
    assert done.returncode == 0 and "verified: " in done.stdout, done.stderr
