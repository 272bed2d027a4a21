"""What is done for CPUs only: a C heap that keeps what a step frees, and matmuls in the form that XLA is fast at.

What every device runs stays where it is used, also where a CPU gains most by it: GELU by erf (`srsjax.model.bert`), the
random words of dropout, the order of axes in attention.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import mmap
import os
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import jax

# ---------------------------------------------------------------------------------------------- the heap


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
    """Whether JAX may find other devices than CPUs, without starting it."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] != "cpu"
    namespace = importlib.util.find_spec("jax_plugins")
    modules = pkgutil.iter_modules(namespace.submodule_search_locations) if namespace else ()
    return bool(importlib.util.find_spec("libtpu") or entry_points(group="jax_plugins") or any(modules))


# ---------------------------------------------------------------------------------------------- matmuls


def on_cpu(fast: Callable, otherwise: Callable) -> Callable:
    """A function of arrays that is `fast` where a program is compiled for CPUs, and `otherwise` elsewhere."""
    return functools.partial(jax.lax.platform_dependent, cpu=fast, default=otherwise)


def small_first(
    einsum: Callable[[str, jax.Array, jax.Array], jax.Array], a_spec: str, b_spec: str, out: str
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`einsum` of two arrays over the last axis but one of both, in the form that XLA's CPU backend has a fast kernel
    for: the smaller operand comes first and is transposed, and so is the result."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        (left_spec, left), (right_spec, right) = sorted(((a_spec, a), (b_spec, b)), key=lambda side: side[1].size)
        left_spec, made = left_spec[:-2] + left_spec[:-3:-1], left_spec[:-2] + left_spec[-1] + right_spec[-1]
        # Without the barriers XLA would merge the transpositions into the product again.
        transposed = jax.lax.optimization_barrier(left.swapaxes(-1, -2))
        result = jax.lax.optimization_barrier(einsum(f"{left_spec},{right_spec}->{made}", transposed, right))
        return result if made == out else result.swapaxes(-1, -2)

    return product
