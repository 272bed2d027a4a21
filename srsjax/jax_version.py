"""Which JAX srsjax runs on, and the reason where it refuses one."""

from __future__ import annotations

import os

from srsjax.errors import InputError

ALLOW = "SRSJAX_ALLOW_OLD_JAX"
"""Environment variable: `1` runs on a refused JAX all the same, to test that the code imports and runs on it."""

OLDEST = (0, 11)
OLDEST_ON_CPU = (0, 12)


def check_jax(version: str | None = None, backend: str | None = None) -> None:
    """Refuses a jaxlib that is too old for the backend in use; both are looked up where not given.

    Looking up the backend starts it, so a program on several hosts calls `jax.distributed.initialize` first.

    Raises:
      InputError: jaxlib < 0.11; or jaxlib < 0.12 on CPU, where 0.10.2 computes wrong results (jax-ml/jax#39103,
        #39257) and 0.11 has not been cleared. `SRSJAX_ALLOW_OLD_JAX=1` turns the check off.
    """
    if os.environ.get(ALLOW) == "1":
        return
    if version is None:
        import jaxlib

        version = jaxlib.__version__
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < OLDEST:
        raise InputError(f"jaxlib {version}: too old, expected 0.11 or newer; run pip install -U jax")
    if found >= OLDEST_ON_CPU:
        return
    if backend is None:
        import jax

        backend = jax.default_backend()
    if backend == "cpu":
        raise InputError(
            f"jaxlib {version} on CPU: refused, expected 0.12 or newer; 0.10.2 computes wrong results there "
            "(jax-ml/jax#39103, #39257) and 0.11 is suspect; run pip install -U jax"
        )
