"""Memory that a process on CPU frees stays its own, and is of huge pages where the kernel has them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import resource
import jax
import jax.numpy as jnp
from srsjax.cpu import keep_freed_memory

{call}
chain = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.sin(x)).sum())
x = jnp.ones((3000, 3000))
faults = []
for _ in range(80):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    chain(x).block_until_ready()
print(*faults)
"""


def page_faults(call: str) -> float:
    """Of a call of a program with a temporary array of 36 MB (9,000 pages): the median of the last 40 of 80 calls,
    because the heap grows now and then until it has the room it needs."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_PLATFORMS": "cpu"},
    )
    return float(np.median(np.diff(np.array(run.stdout.split(), int))[-40:]))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_a_later_call_gets_the_memory_of_the_one_before():
    assert page_faults("assert keep_freed_memory()") < 500 < page_faults("")


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE_ARRAY = """
import re
from pathlib import Path
import jax.numpy as jnp
from srsjax.cpu import keep_freed_memory

assert keep_freed_memory()
x = jnp.ones((128, 1 << 20), jnp.int8).block_until_ready()
print(re.search(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps_rollup").read_text())[1])
"""


@pytest.mark.skipif(not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="the kernel gives none")
def test_large_arrays_are_of_huge_pages():
    run = subprocess.run(
        [sys.executable, "-c", LARGE_ARRAY], capture_output=True, text=True, check=True, env={"JAX_PLATFORMS": "cpu"}
    )
    assert int(run.stdout) > 100 << 10  # of 128 MiB


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_nothing_is_changed_where_an_accelerator_is_asked_for():
    run = subprocess.run(
        [sys.executable, "-c", "from srsjax.cpu import keep_freed_memory; print(keep_freed_memory())"],
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_PLATFORMS": "cuda,cpu"},
    )
    assert run.stdout == "False\n"
