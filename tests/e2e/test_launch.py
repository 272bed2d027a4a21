"""`launch/local.sh`, with stand-ins for Python: which one it takes, what it installs when, and what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

# A Python that notes what pip is asked to install and prints the rest of what it is asked to run.
PYTHON = """#!/usr/bin/env bash
case "${1:-} ${2:-}" in
  -c*base_prefix*) echo "VERSION (main) [GCC] /usr" ;;
  -c*) [[ VERSION != 3.11 ]] && echo "$0" ;;
  "-V ") echo Python VERSION ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") if [[ $3 == install ]]; then echo "${@:5}" >>"$CALLS"; echo from pip; sleep 0.5; [[ ! ${FAIL:-} ]]; fi ;;
  *) echo "$PWD:" "$@" ;;
esac
"""
# Every tool that the script calls.
TOOLS = "bash cat cksum cp dirname env find grep ls mkdir paste rm sed sleep sort tail touch tr".split()  # noqa: SIM905
PYTEST = "-n auto --maxprocesses 8 --dist loadfile"
PYENV = ".pyenv/versions/%s/bin/python"


class Checkout:
    """A copy of what the script needs of a checkout, in a folder with a space, and a PATH without any Python."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.calls = folder / "a checkout", folder / "bin", folder / "calls"
        for name in ("launch/local.sh", "launch/common.sh", "pyproject.toml", ".python-version", "srsjax/train.py"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, self.root / name)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.environment = {"PATH": str(self.bin), "HOME": str(folder), "CALLS": str(self.calls)}

    def python(self, path: str, version: str = "3.12") -> Path:
        """Puts a Python there."""
        where = self.bin.parent / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(PYTHON.replace("VERSION", version))
        where.chmod(0o755)
        return where

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / "local.sh"), *arguments],
            cwd=cwd or self.root.parent,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        process = self.start(*arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def installed(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_a_command_runs_where_the_user_is_and_tests_in_the_checkout(checkout):
    checkout.python("bin/python3")
    code, output, errors = checkout.run("train", "--config", "my ctr.py")
    assert (code, output) == (0, f"{checkout.root.parent}: -m srsjax.train --config my ctr.py\n")
    assert [line.startswith("srsjax: ") for line in errors.splitlines()] == [True] * 3
    assert "from pip" not in errors
    code, output, _ = checkout.run("test", "-k", "bert")
    assert (code, output) == (0, f"{checkout.root}: -m pytest {PYTEST} -k bert\n")


def test_what_is_installed_is_not_installed_again(checkout):
    checkout.python("bin/python3")
    checkout.run("train")
    code, _, errors = checkout.run("train")
    assert (code, errors) == (0, "")
    checkout.run("test")
    checkout.run("test")
    checkout.run("train", SRSJAX_EXTRAS="reference")
    checkout.run("test", SRSJAX_EXTRAS="reference")
    root = str(checkout.root)
    assert checkout.installed() == [root, f"{root}[test]", f"{root}[reference,test]"]


def test_a_changed_pyproject_is_installed_again(checkout):
    checkout.python("bin/python3")
    checkout.run("test")
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    checkout.run("train")
    assert checkout.installed() == [f"{checkout.root}[test]"] * 2


def test_another_python_makes_the_environment_anew(checkout):
    checkout.python("bin/python3")
    checkout.run("train")
    old = checkout.root / ".venv" / "old"
    old.touch()
    checkout.run("train", PYTHON=str(checkout.python("opt/same")))
    assert old.exists()
    code, _, errors = checkout.run("train", PYTHON=str(checkout.python("opt/newer", version="3.13")))
    assert code == 0 and "making" in errors and "Python 3.13" in errors
    assert not old.exists()


def test_a_failed_install_shows_what_pip_said_and_is_tried_again(checkout):
    checkout.python("bin/python3")
    code, output, errors = checkout.run("train", FAIL="yes")
    assert code == 1 and output == ""
    assert "from pip\n" in errors and "install.log" in errors
    code, output, _ = checkout.run("train")
    assert code == 0 and "-m srsjax.train" in output
    assert len(checkout.installed()) == 2


def test_two_at_once_install_once(checkout):
    checkout.python("bin/python3")
    both = [checkout.start("train"), checkout.start("train")]
    assert all("-m srsjax.train" in process.communicate(timeout=60)[0] for process in both)
    assert len(checkout.installed()) == 1
    assert not (checkout.root / ".venv.lock").exists()


def test_the_lock_of_a_killed_set_up_is_taken_over(checkout):
    checkout.python("bin/python3")
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock = checkout.root / ".venv.lock"
    lock.mkdir()
    (lock / "pid").write_text(str(ended.pid))
    assert checkout.run("train")[0] == 0


def test_a_folder_that_is_not_ours_is_left_alone(checkout):
    checkout.python("bin/python3")
    theirs = checkout.root.parent / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").touch()
    code, _, errors = checkout.run("train", SRSJAX_VENV="theirs")
    assert code == 2 and "not made by this script" in errors
    assert (theirs / "thesis.tex").exists()


@pytest.mark.parametrize(
    "pythons, taken",
    [
        (["bin/python3", "bin/python3.13"], "bin/python3"),
        (["bin/python3.12", "bin/python3.13"], "bin/python3.13"),
        (["bin/python3.14", PYENV % "3.12.1"], "bin/python3.14"),
        # .python-version of the checkout says 3.12
        (
            [f".pyenv/versions/{v}/bin/python" for v in ("3.12.1", "3.12.10", "3.13.0")],
            ".pyenv/versions/3.12.10/bin/python",
        ),
        ([PYENV % "3.13.0"], PYENV % "3.13.0"),
    ],
)
def test_which_python_is_taken(checkout, pythons, taken):
    for path in pythons:
        checkout.python(path)
    if "bin/python3" not in pythons:
        checkout.python("bin/python3", version="3.11")
    code, output, _ = checkout.run("--dry-run", "train")
    assert code == 0
    assert output.splitlines()[0].startswith(f"{checkout.root.parent / taken} -m venv ")


def test_no_python_is_one_line_that_says_what_to_install(checkout):
    checkout.python("bin/python3", version="3.11")
    code, output, errors = checkout.run("train")
    assert (code, output) == (2, "")
    assert errors.startswith("srsjax: no Python 3.12 or newer") and errors.count("\n") == 1


def test_a_named_python_that_is_too_old_is_refused(checkout):
    checkout.python("bin/python3")
    old = checkout.python("opt/python3.11", version="3.11")
    code, _, errors = checkout.run("train", PYTHON=str(old))
    assert code == 2 and errors == f"srsjax: PYTHON={old}: expected Python 3.12 or newer with its venv module\n"


def test_a_dry_run_prints_the_commands_and_does_nothing(checkout):
    python = checkout.python("bin/python3")
    code, output, _ = checkout.run("--dry-run", "test", "-k", "a b")
    root = str(checkout.root).replace(" ", "\\ ")
    assert code == 0
    assert output.splitlines() == [
        f"{python} -m venv {root}/.venv",
        f"{root}/.venv/bin/python -m pip install --editable {root}\\[test\\]",
        f"cd {root}",
        f"exec {root}/.venv/bin/python -m pytest {PYTEST} -k a\\ b",
    ]
    assert not (checkout.root / ".venv").exists() and not (checkout.root / ".venv.lock").exists()


def test_an_unknown_command_lists_the_others(checkout):
    code, _, errors = checkout.run("trian")
    assert (code, errors) == (2, "srsjax: no command trian, expected test, train\n")


def test_help_needs_nothing(checkout):
    code, output, errors = checkout.run("--help")
    assert code == 0 and "launch/local.sh train --config ctr.py" in output and errors == ""


def test_shellcheck():
    # The extra `test` installs it beside this Python, which need not be on the path.
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    launch = CHECKOUT / "launch"
    scripts = [*sorted((CHECKOUT / ".ci").iterdir()), launch / "slurm.sbatch", *sorted(launch.glob("*.sh"))]
    checked = subprocess.run([shellcheck, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
