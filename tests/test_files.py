"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time

import pytest

from srsjax import files
from srsjax.files import (
    atomic_file,
    atomic_folder,
    remove_leftovers,
    remove_old_partials,
    remove_partial_files,
    swap_folders,
    trouble,
    write_json,
    write_text,
)


@pytest.fixture
def umask():
    """A umask that gives the group its rights: a mode that `tempfile` never makes."""
    old = os.umask(0o002)
    yield
    os.umask(old)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_whole_and_not_before(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    with atomic_file(target) as partial:
        partial.write_text("new")
        assert partial.parent == tmp_path and partial.name.startswith(".") and target.read_text() == "old"
    assert target.read_text() == "new" and names(tmp_path) == ["report.json"]


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    write_text(tmp_path / "log", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "log") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["log"] and (tmp_path / "log").read_text() == "old"


def test_modes_are_those_of_the_umask_whatever_the_writer_does(tmp_path, umask):
    with atomic_file(tmp_path / "weights") as partial:
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    with atomic_folder(tmp_path / "store") as folder:
        (folder / "a").touch()
    write_json(tmp_path / "plain.json", {"é": 1})
    assert (mode(tmp_path / "weights"), mode(tmp_path / "store"), mode(tmp_path / "plain.json")) == (
        0o664,
        0o775,
        0o664,
    )
    assert (tmp_path / "plain.json").read_bytes() == '{\n "é": 1\n}\n'.encode()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "text").symlink_to("real/a")
    write_text(tmp_path / "text", "new")
    assert (tmp_path / "text").is_symlink() and (tmp_path / "real/a").read_text() == "new"
    with atomic_folder(tmp_path / "link", exists="replace") as folder:
        (folder / "b").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["b"]
    assert names(tmp_path) == ["link", "real", "text"]


def test_writers_at_the_same_time_do_not_meet(tmp_path):
    def write(word: str) -> None:
        for _ in range(20):
            write_text(tmp_path / "file", word * 1000)

    threads = [threading.Thread(target=write, args=(word,)) for word in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() in {word * 1000 for word in "abc"}


@pytest.mark.parametrize(("exists", "holds"), [("keep", ["old"]), ("replace", ["new"]), ("error", ["old"])])
def test_a_folder_that_is_there_already(tmp_path, exists, holds):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()

    def build() -> None:
        with atomic_folder(tmp_path / "out", exists=exists) as folder:
            (folder / "new").touch()

    if exists == "error":
        with pytest.raises(OSError, match="not empty"):
            build()
    else:
        build()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == holds


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "far/away"):
        with atomic_folder(path) as folder:
            (folder / "new").touch()
        assert names(path) == ["new"]


@pytest.mark.parametrize("locks", ["a lock in each", "killed before it was locked", "folders cannot be locked"])
def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_kept(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(files, "GRACE_SECONDS", 0 if locks == "folders cannot be locked" else 3600)
    if locks == "folders cannot be locked":  # as on NFS
        monkeypatch.setattr(files, "_alone", lambda folder: contextlib.nullcontext(False))
    dead, other, foreign = (tmp_path / f".{name}.partial" for name in ("a[1].00", "b.00", "unrelated"))
    for folder in (dead, other):
        folder.mkdir()
        if locks == "a lock in each":
            (folder / files.LOCK).touch()
    foreign.touch()  # a file is not ours
    time.sleep(0.01)
    with atomic_folder(tmp_path / "a[1]") as live:
        assert not dead.exists() and other.exists()
        remove_leftovers(tmp_path)
        assert live.exists() and not other.exists() and foreign.exists()
    assert names(tmp_path) == [".unrelated.partial", "a[1]"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_two_folders_exchange_their_names(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:  # as where the file system cannot
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swap_folders(tmp_path / "old", tmp_path / "new")
    assert names(tmp_path) == ["new", "old"]
    assert names(tmp_path / "old") == ["new"] and names(tmp_path / "new") == ["old"]
    with pytest.raises(OSError):
        swap_folders(tmp_path / "old", tmp_path / "nowhere")
    assert names(tmp_path / "old") == ["new"]


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    for name in (".part-00000.parquet.0123456789ab.partial", "part-00000.parquet", ".keep"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert names(tmp_path) == [".keep", "part-00000.parquet"]


def test_trouble_of_a_disk_is_found_in_whatever_came_of_it():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/runs/a")
    assert trouble(full) == "/data/runs/a: No space left on device"
    try:
        try:
            raise full
        except OSError as error:
            raise ValueError("cannot save") from error
    except ValueError as error:
        assert trouble(error) == "/data/runs/a: No space left on device"
    library = RuntimeError("RESOURCE_EXHAUSTED: Error writing '/data/runs/b/d/0' [No space left on device]")
    assert trouble(library) == "/data/runs/b/d/0: No space left on device"
    for other in (None, ValueError("no"), OSError(errno.ENOENT, "No such file", "/x"), KeyError("/a/b")):
        assert trouble(other) is None


def test_what_killed_writers_of_a_file_left_behind_is_removed_once_it_is_old(tmp_path):
    old, young, other = (tmp_path / f".{name}.partial" for name in ("a[1].00", "a[1].01", "b.00"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_old_partials(tmp_path / "a[1]")
    assert not old.exists() and young.exists() and other.exists()
