"""Where compiled programs are kept, and what is said of them."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.compilation import GPU_OPTIONS, Compilations, compiler_options, enable_cache
from srsjax.console import Console


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Compiled programs are kept below `tmp_path` and nowhere else; afterwards as before."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def test_without_a_folder_to_write_to_nothing_is_kept(cache, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    try:
        assert enable_cache() is None
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


def test_a_program_is_compiled_once_and_then_loaded(cache):
    folder, compilations, console = enable_cache(), Compilations(), Console(file=io.StringIO(), width=500)
    heard = []
    for _ in range(2):

        def f(x):
            return jnp.sin(x) @ x

        jax.jit(f).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile()
        compilations.tell(console)
        heard.append(console.file.getvalue())
        console.file.truncate(0), console.file.seek(0)
    compilations.tell(console)  # nothing new: nothing is said
    assert heard[0].startswith("programs: f compiled in ") and heard[1].startswith("programs: f loaded in ")
    assert console.file.getvalue() == ""
    assert folder.is_relative_to(cache) and len(list(folder.glob("*-cache"))) == 1


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores and Linux"
)
def test_other_cores_have_another_folder(cache):
    """XLA divides a program over the cores it sees, and JAX's key of the program leaves their number out."""
    allowed, before = os.sched_getaffinity(0), enable_cache()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert enable_cache() != before
    finally:
        os.sched_setaffinity(0, allowed)
    assert enable_cache() == before


def test_without_the_variable_programs_are_kept_in_the_cache_folder_of_the_user(cache, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "home"))
    assert enable_cache().parent == cache / "home" / "srsjax"


def mesh_of(platform: str, devices: int) -> SimpleNamespace:
    return SimpleNamespace(size=devices, devices=np.array([SimpleNamespace(platform=platform)] * devices))


def test_several_gpus_have_options_that_the_compiler_knows(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(mesh_of("gpu", 2)) == GPU_OPTIONS
    for alone in (mesh_of("gpu", 1), mesh_of("tpu", 2), mesh_of("cpu", 2)):
        assert compiler_options(alone) == {}
    assert jax.jit(lambda x: x + 1, compiler_options=GPU_OPTIONS)(1) == 2  # an unknown name raises


def test_xla_flags_have_the_last_word(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false")
    assert compiler_options(mesh_of("gpu", 2)).keys() == GPU_OPTIONS.keys() - {
        "xla_gpu_enable_latency_hiding_scheduler"
    }
    monkeypatch.setenv("XLA_FLAGS", " ".join(f"--{name}=1" for name in GPU_OPTIONS))
    assert compiler_options(mesh_of("gpu", 2)) == {}
