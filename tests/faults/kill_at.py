"""Runs a command that is killed before its n-th file operation: `kill_at.py N REPORT MODULE ARGUMENTS`.

The operations are those that change something below the working folder: a file opened to write, a rename, a removal, a
new folder, an fsync. Python itself tells of them (`sys.addaudithook`), so that the command is the one that users run.
Without a kill (N is 0, or larger than the number of operations) the number is written to REPORT at the end.
"""

from __future__ import annotations

import atexit
import itertools
import os
import runpy
import signal
import sys

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killer:
    """Counts the operations, from every thread, and kills this process at one of them."""

    def __init__(self, at: int, report: str):
        self.at, self.report, self.folder = at, report, os.path.join(os.getcwd(), "")
        self.numbers = itertools.count(1)
        self.seen = 0

    def audit(self, event: str, arguments: tuple) -> None:
        """An audit hook."""
        if event == "open":
            path, _, flags = arguments
            if flags & WRITES and self.is_below(path):
                self.operation()
        elif event in CHANGES and any(map(self.is_below, arguments[:2])):
            self.operation()

    def is_below(self, path: object) -> bool:
        """Whether a path is in the working folder."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def operation(self) -> None:
        """Counts an operation that is about to happen."""
        self.seen = next(self.numbers)
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self) -> None:
        """Writes how many operations there were."""
        seen = self.seen
        with open(self.report, "w") as file:
            file.write(str(seen))


def main() -> None:
    """See the top of this file."""
    _, at, report, module, *arguments = sys.argv
    killer = Killer(int(at), report)
    sys.addaudithook(killer.audit)
    flush = os.fsync

    def fsync(file) -> None:
        killer.operation()
        flush(file)

    os.fsync = fsync
    atexit.register(killer.tell)
    sys.argv = [module, *arguments]
    sys.path[0] = ""  # as with `python -m`
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
