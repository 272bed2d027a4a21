"""The C heap on CPU, of which XLA takes the temporary memory of every step, and to which it gives it back."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
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

    Half of the machine's memory is reserved for it, as addresses, and marked for huge pages: without them the kernel
    clears and maps every 4 KiB by itself when they are first written, seconds for each gigabyte on a virtual machine.

    Does nothing where JAX has an accelerator to compute on, or the C library is not glibc. Call it before JAX starts
    its threads: a thread keeps the heap it began with.
    """
    if sys.platform != "linux" or may_have_accelerator():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    kept = all([mallopt(ARENA_MAX, 1), mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1)])
    if kept:
        _reserve_huge_pages(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return kept


def _reserve_huge_pages(size: int) -> None:
    """Lets the heap grow by `size` bytes that the kernel backs with huge pages once they are used.

    What is freed stays in the heap, so that one large block, marked and freed, is what later ones are taken of. A limit
    on addresses, or a kernel without huge pages, leaves things as they were.
    """
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = library.malloc(size)
    if block:
        begin = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        library.madvise(begin, block + size - begin, mmap.MADV_HUGEPAGE)
        library.free(block)


def may_have_accelerator() -> bool:
    """Whether JAX may find other devices than CPUs, told without starting it."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] != "cpu"
    namespace = importlib.util.find_spec("jax_plugins")
    modules = pkgutil.iter_modules(namespace.submodule_search_locations) if namespace else ()
    return bool(importlib.util.find_spec("libtpu") or entry_points(group="jax_plugins") or any(modules))
