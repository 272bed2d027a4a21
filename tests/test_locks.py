"""One command at a time for a folder, whatever became of the last one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from srsjax.errors import InputError
from srsjax.locks import exclusive

HOLD = """
import sys, time
from srsjax.locks import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path / "scores"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "scores")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(InputError) as refused, exclusive(tmp_path / "scores"):
        pass
    said = str(refused.value)
    assert f"in use by process {holder.pid} on {socket.gethostname()} since 20" in said and "\n" not in said
    with exclusive(tmp_path / "others"):  # another folder is none of its business
        pass


def test_the_lock_of_a_killed_process_is_taken_over_and_nothing_is_left(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".scores.lock"]
    with exclusive(tmp_path / "scores"):
        assert json.loads((tmp_path / ".scores.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_by_an_error_and_follows_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(KeyError), exclusive(tmp_path / "real"):
        raise KeyError
    with exclusive(tmp_path / "link"), pytest.raises(InputError), exclusive(tmp_path / "real"):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said: list[str] = []
    with exclusive(tmp_path / "scores", said.append):
        assert len(said) == 1 and "cannot be locked (No locks available)" in said[0]


def test_folders_made_for_a_lock_are_removed_where_nothing_came_of_it(tmp_path):
    with exclusive(tmp_path / "runs/a/b"):
        assert (tmp_path / "runs/a").is_dir()
    assert not (tmp_path / "runs").exists()
    with exclusive(tmp_path / "runs/a/b"):
        (tmp_path / "runs/kept").write_text("")
    assert (tmp_path / "runs").is_dir() and not (tmp_path / "runs/a").exists()
