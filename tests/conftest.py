"""What every test finds: JAX on eight CPU devices, weights, data sets, and commands as a user runs them."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# JAX reads these when it is first imported. Eight devices make meshes; what names no mesh runs on the first of them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Compiling is most of the time of the tests; this halves it. Commands that tests start are compiled as for a user.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Compiled programs are shared by the tests of one session, also by commands they start, and leave nothing behind.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="srsjax-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest
from hypothesis import HealthCheck, settings

# Few examples and the same ones each time: a slow or loaded machine neither fails a test nor finds new ones.
settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
# More and other examples: `HYPOTHESIS_PROFILE=search`.
settings.register_profile("search", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of MiniLM-L6 in Hugging Face's layout."""
    folder = os.environ.get("SRSJAX_MINILM", "")
    if not (Path(folder) / "model.safetensors").is_file():
        pytest.skip("SRSJAX_MINILM names no folder with MiniLM-L6 weights (model.safetensors)")
    return folder


@pytest.fixture(scope="session")
def data_sets() -> Path:
    """The folder that holds one folder for each data set."""
    folder = os.environ.get("SRSJAX_DATA", "")
    if not (folder and Path(folder).is_dir()):
        pytest.skip("SRSJAX_DATA names no folder of data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def command():
    """`command("train", "--config", "ctr.py", cwd=..., **environment)`: the finished process, its output as text.

    It runs as a user runs it: on the devices there are, and optimised; see the top of this file.
    """

    def run(
        name: str, *arguments: object, cwd: Path | str = CHECKOUT, **environment: str
    ) -> subprocess.CompletedProcess:
        for_tests = ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
        inherited = {key: value for key, value in os.environ.items() if key not in for_tests}
        return subprocess.run(
            [sys.executable, "-m", f"srsjax.{name}", *map(str, arguments)],
            cwd=cwd,
            env=inherited | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def problem():
    """`problem(mesh=..., micro_batches=..., ...)`: `small_problem.make_problem`."""
    from small_problem import make_problem  # not for tests that need no JAX

    return make_problem
