"""Which JAX is refused, where, and that the refusal gives the reason."""

import pytest

from srsjax.errors import InputError
from srsjax.jax_version import ALLOW, check_jax


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.delenv(ALLOW, raising=False)


@pytest.mark.parametrize("version", ["0.12.0", "0.12.0.1", "0.13.0.dev20261001", "1.0.0"])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_new_enough_everywhere(version, backend):
    check_jax(version, backend)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_0_11_runs_on_accelerators(backend):
    check_jax("0.11.2", backend)


@pytest.mark.parametrize("version", ["0.11.0", "0.11.2", "0.11.2rc1"])
def test_0_11_is_refused_on_cpu_with_the_reason(version):
    with pytest.raises(InputError, match=r"on CPU: refused, expected 0\.12 .*jax-ml/jax#39103, #39257"):
        check_jax(version, "cpu")


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_older_is_refused_everywhere(backend):
    with pytest.raises(InputError, match=r"0\.10\.2: too old, expected 0\.11"):
        check_jax("0.10.2", backend)


def test_the_installed_jax_is_accepted():
    check_jax()


def test_the_check_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(ALLOW, "1")
    check_jax("0.10.2", "cpu")
