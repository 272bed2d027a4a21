"""Memory that a process on CPU frees stays its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax
import jax.numpy as jnp
from srsjax.allocator import keep_freed_memory

assert keep_freed_memory() == {kept}
chain = jax.jit(lambda x: jnp.cumsum(jnp.sin(x) @ jnp.cos(x), axis=0).sum())
x = jnp.ones((3000, 3000))
for call in range(8):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    chain(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def page_faults(platforms: str, kept: bool) -> int:
    """Of the eighth call of a program with temporary arrays of 36 MB each."""
    program = PROGRAM.format(kept=kept)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"JAX_PLATFORMS": platforms}
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_a_later_call_gets_the_memory_of_the_one_before():
    assert page_faults("cpu", kept=True) < 500  # one array has 9,000 pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_nothing_is_changed_where_an_accelerator_is_asked_for():
    run = subprocess.run(
        [sys.executable, "-c", "from srsjax.allocator import keep_freed_memory; print(keep_freed_memory())"],
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_PLATFORMS": "cuda,cpu"},
    )
    assert run.stdout == "False\n"
