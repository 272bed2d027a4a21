"""Compiled programs: cached on disk between runs, and reported to the user who waits for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from srsjax import distributed
from srsjax.console import Console
from srsjax.hardware import usable_cores


def enable_cache() -> Path | None:
    """Caches every program that this process compiles, and loads those already cached; returns the folder.

    It is below `$JAX_COMPILATION_CACHE_DIR`, else `$XDG_CACHE_HOME/srsjax` or `~/.cache/srsjax`. JAX names an entry by
    the program, the compile options and XLA flags, the jaxlib version and the kind of device, on CPU down to its
    instruction sets, because an executable loaded on another CPU would crash. JAX leaves out the number of cores,
    over which XLA divides a CPU program when it compiles it: the folder's name has it, and the version of jax, so that
    leftovers of an old version can be recognised. `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off; so does a
    folder that cannot be created, for which None is returned.

    Anyone who can write there can make this program run code, so it should belong to one user.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        folder = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "srsjax")
        folder /= f"jax-{jax.__version__}-{usable_cores()}-cores"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # JAX keeps only what took a second
    return folder


GPU_OPTIONS: dict[str, bool | str] = {
    # Schedules a program so that matmuls overlap transfers of parameters and gradients between devices. NVIDIA's
    # images of JAX turn it on.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # A program that takes longer ends its process: a collective whose other devices never come would wait for ever. It
    # is for whoever turned the watchdog of training off, and for the other commands; the watchdog says more, so it is
    # to come first.
    "xla_gpu_execution_terminate_timeout": "1h",
}
"""Compiler options for programs on several GPUs. They have not been run on any: XLA's compiler takes them."""


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool | str]:
    """Compiler options of `jax.jit` for programs whose devices exchange parameters; XLA_FLAGS takes precedence."""
    if mesh.size == 1 or mesh.devices.flat[0].platform != "gpu":
        return {}
    return {name: value for name, value in GPU_OPTIONS.items() if name not in os.environ.get("XLA_FLAGS", "")}


class CompiledAhead:
    """`jitted` for arguments of these shapes, dtypes and shardings only, compiled (or loaded) in a background thread
    from now on, while weights are read and put on the devices, which takes about as long. The first call waits for it,
    and raises what the compiler raised; with several processes it waits for all of them."""

    def __init__(self, jitted: Any, *targets):
        pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._program = pool.submit(lambda: jitted.lower(*targets).compile())
        pool.shutdown(wait=False)
        self._ready: Callable | None = None

    def __call__(self, *arguments):
        return self.wait()(*arguments)

    def wait(self) -> Callable:
        """Blocks until it is compiled; returns it."""
        if self._ready is None:
            compiled = self._program.result()
            distributed.on_first(lambda: None)  # hosts differ in compile time, and Gloo times out after 30 seconds
            self._ready = compiled
        return self._ready


LONG = 5.0
"""Seconds of compilation from which on any program is named."""


class Compilations:
    """Hears of every compilation of the process from now on.

    `heard` is called with the seconds of each, in the thread that compiled it. Programs of these `names` are printed,
    and those that take long; None prints all.
    """

    def __init__(self, heard: Callable[[float], None] = lambda seconds: None, names: Collection[str] | None = None):
        self._names = names
        self._heard: list[tuple[str, str, float]] = []
        self._also = heard
        self._thread = threading.local()  # programs may be compiled by several threads at once
        jax.monitoring.register_event_listener(self._event)
        jax.monitoring.register_event_duration_secs_listener(self._duration)

    def tell(self, console: Console) -> None:
        """Says in one line what was compiled since the last call, if anything was."""
        heard, self._heard = self._heard, []
        told = [each for each in heard if self._names is None or each[0] in self._names or each[2] > LONG]
        said = [f"{name} {how} in {seconds:.1f} s" for name, how, seconds in told]
        if said:
            console.print(f"programs: {', '.join(said)}")

    def _event(self, event: str, **_) -> None:
        if event == "/jax/compilation_cache/cache_hits":  # comes right before the duration of the same program
            self._thread.loaded = True

    def _duration(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            how = "loaded" if getattr(self._thread, "loaded", False) else "compiled"
            self._thread.loaded = False
            name = str(about.get("fun_name", "?"))
            self._heard.append((name.removeprefix("jit(").removesuffix(")"), how, duration_secs))
            self._also(duration_secs)
