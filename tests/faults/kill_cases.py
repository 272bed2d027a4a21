"""Commands that are killed again and again, and what each of them must have made in the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from corruption_cases import write_data
from orbax.checkpoint import v1 as ocp

WRAPPER = Path(__file__).with_name("kill_at.py")
MOST_KILLS = 5
"""Kills of a series, one after another, before the command may come to its end."""
GIVE_UP = 600
"""Seconds after which a process counts as hung."""
ORPHANED = 10
"""Seconds after which the process that lost the other is killed too, as a scheduler would do."""
OLD = 3600
"""Seconds by which what a killed process left behind is made older: what is young may belong to a live process."""
PARTS = ("params", "rest")
"""Of a checkpoint."""
CLOCK = ("examples_per_second", "tokens_per_second", "input_wait", "mfu")
"""Fields of a log line that depend on how fast the machine is."""


# ---------------------------------------------------------------------------------------------- what is left behind


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file of a folder, the hidden ones too: a lock or a partial file would be one."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def without(path: Path, *names: str) -> str:
    """A JSON file without some of its fields."""
    return json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in names})


def store_of(folder: Path) -> dict[str, str]:
    """All files of the store; its manifest says how long it took, and its checksum is of that too."""
    found = {name: said for name, said in contents(folder / "stores").items() if not name.endswith("manifest.json")}
    for path in (folder / "stores").rglob("manifest.json"):
        found[path.relative_to(folder / "stores").as_posix()] = without(path, "seconds", "checksum")
    return found


def run_of(folder: Path) -> dict[str, str]:
    """What a run is: log lines, reports, checkpoints array by array, and the files that scores depend on."""
    run = folder / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {"metrics.jsonl": json.dumps([{k: v for k, v in line.items() if k not in CLOCK} for line in lines])}
    found["manifest.json"] = without(run / "manifest.json", "seconds", "checksum")
    for name in ("config.json", "model.json", "report.json", "calibration.json"):
        found[name] = (run / name).read_text()
    found |= {f"tokenizer/{name}": said for name, said in contents(run / "tokenizer").items()}
    for name in ("valid.png", "test.png"):  # the report draws what depends on the clock too
        found[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    for checkpoint in (run / "checkpoints").iterdir():
        found |= {f"{checkpoint.name}{path}": said for path, said in arrays_of(checkpoint).items()}
    return found | {"left behind": str(left_behind(folder))}


def arrays_of(checkpoint: Path) -> dict[str, str]:
    """A digest of each array of a checkpoint, and what it says of progress."""
    about = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    found = {"progress": json.dumps(about["progress"])}
    parts = ocp.checkpointables_metadata(checkpoint.absolute()).metadata
    # As arrays of numpy: the devices that saved them may be those of several processes.
    target = {name: jax.tree.map(lambda array: np.empty(array.shape, array.dtype), parts[name]) for name in PARTS}
    arrays = ocp.load_checkpointables(checkpoint.absolute(), target)
    for path, value in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.asarray(value)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        found[jax.tree_util.keystr(path)] = digest.hexdigest()
    return found


def left_behind(folder: Path) -> list[str]:
    """Names of what only a process at work may leave."""
    return sorted(path.name.split(".")[1] for path in folder.rglob(".*") if path.name.endswith((".partial", ".lock")))


def whole(*names: str) -> Callable[[Path], dict[str, str]]:
    """All bytes of some files and folders, and that there is nothing else in progress."""

    def found(folder: Path) -> dict[str, str]:
        out = {"left behind": str(left_behind(folder))}
        for path in (folder / name for name in names):
            out |= contents(path) if path.is_dir() else {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        return out

    return found


# ---------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Case:
    """A command, in one or two processes."""

    name: str
    module: str
    arguments: tuple[str, ...]
    found: Callable[[Path], dict[str, str]]
    """What it made in a folder, by name, to be compared bit for bit."""
    processes: int = 1
    trained: bool = True
    """Whether it starts from a folder with a finished run."""
    refuses: str = ""
    """What it says where its work is done already, if it does not do it again."""


TRAIN = ("--config", "config.py", "--checkpoints.every", "2", "--log_every", "1")
SCORE = ("--run", "run", "--input", "log.csv", "--part_rows", "30", "--output", "scores")
EVALUATE = ("--run", "run", "--split", "test", "--output", "metrics.json", "--report", "page.html")
EXISTS = "exported: exists already"
CASES = (
    Case("prepare", "prepare", ("--config", "config.py"), store_of, trained=False),
    Case("train", "train", TRAIN, run_of, trained=False),
    Case("train by two", "train", TRAIN, run_of, 2, trained=False),
    Case("score", "score", SCORE, whole("scores")),
    Case("score by two", "score", SCORE, whole("scores"), 2),
    Case("export", "export", ("--run", "run", "--output", "exported"), whole("exported"), refuses=EXISTS),
    Case(
        "export stablehlo",
        "export",
        ("--run", "run", "--format", "stablehlo", "--output", "exported"),
        whole("exported"),
        refuses=EXISTS,
    ),
    Case("evaluate", "evaluate", EVALUATE, whole("metrics.json", "page.html")),
)


class Processes:
    """The processes of one start of a command, the first of which may be killed at a file operation."""

    def __init__(self, case: Case, folder: Path, operation: int = 0, victim: int = 0):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for_tests = ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
        inherited = {key: value for key, value in os.environ.items() if key not in for_tests}
        self.reports, self.errors, self.all = [], [], []
        for process in range(case.processes):
            several = {
                "SRSJAX_COORDINATOR": f"localhost:{port}",
                "SRSJAX_NUM_PROCESSES": str(case.processes),
                "SRSJAX_PROCESS_ID": str(process),
                "JAX_NUM_CPU_DEVICES": "1",
            }
            environment = inherited | (several if case.processes > 1 else {})
            self.reports.append(folder.parent / f"operations-{process}")
            self.errors.append(folder.parent / f"errors-{process}")
            at = operation if process == victim else 0
            command = [sys.executable, str(WRAPPER), str(at), str(self.reports[-1]), f"srsjax.{case.module}"]
            with open(self.errors[-1], "w") as errors:
                started = subprocess.Popen(
                    [*command, *case.arguments],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            self.all.append(started)

    def wait(self, seconds: float) -> bool:
        """Whether all ended within some time."""
        end = time.monotonic() + seconds
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.01))
        return all(process.poll() is not None for process in self.all)

    def wait_for_any(self, seconds: float) -> None:
        """Until one of them has ended, or some time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and all(process.poll() is None for process in self.all):
            time.sleep(0.005)

    def kill(self) -> None:
        """Kills those that are still there."""
        for process in self.all:
            process.kill()
            process.wait()

    @property
    def codes(self) -> list[int | None]:
        """Exit codes."""
        return [process.returncode for process in self.all]

    def said(self) -> str:
        """The end of what they wrote to standard error."""
        return " | ".join(path.read_text()[-2000:] for path in self.errors)


# ---------------------------------------------------------------------------------------------- series of kills


@dataclass(frozen=True)
class Whole:
    """A command that nothing interrupted."""

    seconds: float
    operations: tuple[int, ...]
    """File operations of each process."""
    found: dict[str, str]


class Kills:
    """Series of kills below a folder. Everything is drawn from the seed but what the clock decides."""

    def __init__(self, folder: Path, seed: int = 0, say=print):
        self.folder, self.chance, self.say = folder, random.Random(seed), say
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.unbroken: dict[str, Whole] = {}
        self.data, self.trained = folder / "data", folder / "trained"
        self.data.mkdir()
        write_data(self.data, 0)

    def start_folder(self, case: Case) -> Path:
        """A new folder as the command finds it."""
        if case.trained and not self.trained.exists():
            self.unbroken_of(next(each for each in CASES if each.name == "train"))
            shutil.copytree(self.folder / "at work", self.trained, symlinks=True)
        target = self.folder / "at work"
        shutil.rmtree(target, ignore_errors=True)
        # With its times: by those of the log the store is known.
        return Path(shutil.copytree(self.trained if case.trained else self.data, target))

    def unbroken_of(self, case: Case) -> Whole:
        """The command without a kill; made twice, so that the second finds the programs compiled, as the killed do."""
        if case.name not in self.unbroken:
            for _ in range(2):
                folder = self.start_folder(case)
                began = time.monotonic()
                processes = Processes(case, folder)
                self.ended_well(case, processes)
                seconds = time.monotonic() - began
            operations = tuple(int(report.read_text()) for report in processes.reports)
            self.unbroken[case.name] = Whole(seconds, operations, case.found(folder))
        return self.unbroken[case.name]

    def ended_well(self, case: Case, processes: Processes) -> None:
        """Raises AssertionError for processes that hang or fail."""
        ended = processes.wait(GIVE_UP)
        processes.kill()
        assert ended, f"{case.name}: hung: {processes.said()}"
        if case.refuses and set(processes.codes) == {2} and case.refuses in processes.said():
            return
        assert set(processes.codes) == {0}, f"{case.name}: exit codes {processes.codes}: {processes.said()}"

    def series(self, case: Case) -> None:
        """Kills a command some times, runs it to its end, and compares."""
        unbroken = self.unbroken_of(case)
        folder, story = self.start_folder(case), []
        try:
            for _ in range(self.chance.randint(1, MOST_KILLS)):
                if not self.kill_once(case, folder, unbroken, story):
                    break
            make_older(folder)
            self.ended_well(case, Processes(case, folder))
            found = case.found(folder)
            different = sorted(
                name for name in unbroken.found.keys() | found.keys() if unbroken.found.get(name) != found.get(name)
            )
            shown = [f"{name}: {found.get(name)} for {unbroken.found.get(name)}"[:300] for name in different[:5]]
            assert not different, f"{len(different)} differ: {shown}"
        except Exception as error:
            self.failures.append(f"{case.name}, killed at {', '.join(story)}: {type(error).__name__}: {error}")
            self.say(f"FAILURE: {self.failures[-1]}")
            shutil.copytree(folder, self.folder / f"failure-{len(self.failures)}", dirs_exist_ok=True)

    def kill_once(self, case: Case, folder: Path, unbroken: Whole, story: list[str]) -> bool:
        """One start and one kill; False where the command came to its end first."""
        victim = self.chance.randrange(case.processes)
        if unbroken.operations[victim] and self.chance.random() < 0.6:
            operation = self.chance.randint(1, unbroken.operations[victim])
            processes, aimed = Processes(case, folder, operation, victim), f"operation {operation} of {victim}"
            processes.wait_for_any(GIVE_UP)
        else:
            moment = self.chance.uniform(0, unbroken.seconds)
            processes, aimed = Processes(case, folder), f"{moment:.2f} s in {victim}"
            processes.wait_for_any(moment)
            processes.all[victim].kill()
        processes.wait(ORPHANED)
        processes.kill()
        killed = -signal.SIGKILL in processes.codes
        if not killed:
            self.ended_well(case, processes)
        story.append(aimed if killed else f"{aimed}, but it had ended")
        kind = "at a file operation" if aimed.startswith("operation") else "at a moment"
        self.counts[f"{case.name}, {kind}" if killed else f"{case.name}, ended before"] += 1
        self.counts["kills"] += killed
        return killed


def make_older(folder: Path) -> None:
    """What was left behind is an hour older: it cannot belong to a live process then."""
    for path in folder.rglob("*.partial"):
        if path.name.startswith("."):
            os.utime(path, (time.time() - OLD,) * 2)


def run_kills(kills: int, seed: int, names: tuple[str, ...], say=print) -> Kills:
    """Series of the cases in turn until so many kills were made."""
    with tempfile.TemporaryDirectory(prefix="srsjax-kills-") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder) / "programs"))
        made = Kills(Path(folder), seed, say)
        cases = [case for case in CASES if not names or case.name in names]
        while made.counts["kills"] < kills:
            for case in cases:
                made.series(case)
                say(f"{made.counts['kills']} kills, {len(made.failures)} failures: {case.name}", flush=True)
        return made
