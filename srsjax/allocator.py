"""The C heap on CPU, of which XLA takes the temporary memory of every step, and to which it gives it back."""

from __future__ import annotations

import ctypes
import importlib.util
import pkgutil
import sys
from importlib.metadata import entry_points

import jax

# Parameters of mallopt(3) in glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees, for the next step to use; returns whether it does.

    By default glibc returns large blocks to the kernel, which clears every page of them again at the next step: a
    quarter of the time of a BERT-base step on two cores. Blocks of other threads than the first never stay, so that one
    heap has to serve all. The process stays as large as it ever was.

    Does nothing where JAX has an accelerator to compute on, or the C library is not glibc. Call it before JAX starts
    its threads: a thread keeps the heap it began with.
    """
    if sys.platform != "linux" or may_have_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return all([mallopt(ARENA_MAX, 1), mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1)])


def may_have_accelerator() -> bool:
    """Whether JAX may find other devices than CPUs, told without starting it."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] != "cpu"
    namespace = importlib.util.find_spec("jax_plugins")
    modules = pkgutil.iter_modules(namespace.submodule_search_locations) if namespace else ()
    return bool(importlib.util.find_spec("libtpu") or entry_points(group="jax_plugins") or any(modules))
