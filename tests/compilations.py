"""Which programs are compiled, for the tests that count them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that are compiled, or loaded from the cache, within the block."""
    names: list[str] = []

    def heard(event: str, seconds: float, **more) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(more.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
