"""What the tests of `launch/` share: a checkout whose programs are stand-ins, and options as they are documented."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

TRICKY = """it's a "title" with $HOME, $(id), *, \\ and `date`"""
"""What a shell, YAML or Kubernetes would change if it were not quoted."""

# Notes how it was called, as `printf %q` writes it: a dry run prints calls in the same way.
NOTE = """#!/usr/bin/env bash
{ printf '%q' "${0##*/}"; printf ' %q' "$@"; echo; } >>"$FAKE/calls"
"""

# Stands in for launch/local.sh: notes what it is to run, and ends with the next code of $FAKE/codes.
PROGRAM = """#!/usr/bin/env bash
[[ ${2:-} == --help ]] && { echo "$SRSJAX_EXTRAS" >>"$FAKE/installs"; exit; }
me=${WORKER:-0}
printf '%s\\0' "$PWD" "$SRSJAX_EXTRAS" "$@" >>"$FAKE/program-$me"
echo >>"$FAKE/count-$me"
code=$(sed -n "$(wc -l <"$FAKE/count-$me")p" "$FAKE/codes")
echo "log of worker $me"
if [[ $code == preempted ]]; then
  [[ $me != 0 ]] || echo SUSPENDED >"$FAKE/state"
  exit 137
fi
exit "$code"
"""


class Cluster:
    """A checkout in a folder with a space, tools that note their calls, and programs that end as they are told to."""

    def __init__(self, folder: Path, **tools: str):
        self.folder, self.root, self.bin = folder, folder / "a checkout", folder / "bin"
        shutil.copytree(CHECKOUT / "launch", self.root / "launch")
        (self.root / "launch" / "local.sh").write_text(PROGRAM)
        for name in ("pyproject.toml", ".python-version", "README.md", "LICENSE", "configs/ctr.py", "srsjax/train.py"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, self.root / name)
        self.bin.mkdir()
        for name, script in tools.items():
            self.tool(name, script)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE": str(folder),
            "TMPDIR": str(folder),
            "SRSJAX_POLL": "0",
        }

    def tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(NOTE + script)
        (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a script of `launch/`."""
        process = self.start(script, *arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / script), *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def codes(self, *codes: int | str) -> None:
        """How the program ends, the first time, the second, and so on."""
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))

    def calls(self, tool: str = "") -> list[str]:
        """Calls of the tools (of one), in order."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line for line in lines if line.startswith(tool)]

    def programs(self, worker: int = 0) -> list[str]:
        """Folder, extras and arguments of every program that a worker ran, one after the other."""
        noted = self.folder / f"program-{worker}"
        return noted.read_text().split("\0")[:-1] if noted.exists() else []


def undocumented(lines: list[str], documented: dict[str, set[str]]) -> list[str]:
    """The options of these command lines that the documentation of their command does not name; the key of a command
    is its first words. A command that is not documented here at all is returned whole."""
    wrong = []
    for line in lines:
        words = shlex.split(line)
        command = max((key for key in documented if words[: len(key.split())] == key.split()), key=len, default=None)
        if command is None:
            wrong.append(line)
            continue
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        wrong += sorted(given - documented[command])
    return wrong
