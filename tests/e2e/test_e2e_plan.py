"""`python -m srsjax.plan` as a user runs it: eight CPU devices, the small shop."""

from __future__ import annotations

import importlib.util
import re

import pytest

ROWS = ("--batch.rows", 64)


def numbers(text: str, label: str) -> list[float]:
    """The numbers of the row of a table that begins with `label`."""
    (line,) = [line for line in text.splitlines() if re.match(rf"│ {re.escape(label)} ", line)]
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]+\.\d+", line)]


def test_it_prints_memory_and_collectives_and_writes_no_run(trained, small, command):
    before = sorted(trained.rglob("*"))
    done = command("plan", "--config", "ctr.py", *small, *ROWS, "--topology", "cpu:8", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "mesh: data 8, fsdp 1, tensor 1 on 8 x cpu" in done.stdout
    parts = [numbers(done.stdout, label) for label in ("parameters", "optimizer", "batches (2)")]
    temporary, total = numbers(done.stdout, "activations, temporary"), numbers(done.stdout, "total")
    # One digit is printed of each of the five.
    assert all(abs(sum(column) - whole) < 0.3 for *column, whole in zip(*parts, temporary, total, strict=True))
    assert temporary[0] > 0 and parts[1][1] == 0
    assert re.search(r"training │ all-reduce +│ +8 │", done.stdout)
    assert "--mesh.data 8 --mesh.fsdp 1 --mesh.tensor 1" in done.stdout
    assert sorted(trained.rglob("*")) == before


@pytest.mark.slow  # a minute
def test_what_does_not_fit_is_said_and_auto_finds_what_does(trained, small, command):
    plan = ("plan", "--config", "ctr.py", *small, *ROWS, "--topology", "cpu:8", "--memory", 0.0007)
    done = command(*plan, cwd=trained)
    assert done.returncode == 1, done.stderr
    assert "does NOT fit" in done.stdout and "--model.remat" in done.stdout
    done = command(*plan, "--auto", cwd=trained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert numbers(done.stdout, "total")[0] <= numbers(done.stdout, "memory of the device")[0]  # of one digit
    flags = re.search(r"train with: (.*)", done.stdout)[1].split()
    # What it proposes fits by a plan of its own, and a run accepts it.
    assert command(*plan, *flags, cwd=trained).returncode == 0
    run = ("train", "--config", "ctr.py", *small, *ROWS, *flags, "--max_steps", 1, "--run_dir", "planned")
    done = command(*run, cwd=trained, JAX_NUM_CPU_DEVICES="8")
    assert done.returncode == 0, done.stderr


def test_auto_says_when_nothing_fits(trained, small, command):
    plan = ("plan", "--config", "ctr.py", *small, *ROWS, "--topology", "cpu:2", "--memory", 0.00001, "--auto")
    done = command(*plan, cwd=trained)
    assert done.returncode == 1, done.stderr
    assert "nothing that was tried fits" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topology", "v5e"), "expected local, cpu:N"),
        (("--topology", "cpu:8", "--auto"), "give --memory"),
        (("--topology", "cpu:2", "--memory", -1), "expected GiB"),
        (("--topology", "cpu:3", "--batch.rows", 8), "expected a multiple of 3"),
    ],
)
def test_wrong_input_is_one_line(trained, small, command, arguments, said):
    done = command("plan", "--config", "ctr.py", *small, *arguments, cwd=trained)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


@pytest.mark.skipif(bool(importlib.util.find_spec("libtpu")), reason="libtpu is installed")
def test_a_topology_without_libtpu_says_what_to_install(trained, small, command):
    done = command("plan", "--config", "ctr.py", *small, "--topology", "v5e:2x4", cwd=trained)
    assert done.returncode == 2 and "pip install 'jax[tpu]'" in done.stderr


BERT_BASE = (
    *("--model.hidden_size", 768, "--model.num_layers", 12, "--model.num_heads", 12),
    *("--model.intermediate_size", 3072, "--batch.rows", 512, "--batch.tokens", 128),
)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed (pip install 'jax[tpu]')")
@pytest.mark.parametrize(
    ("topology", "name"),
    [
        ("v5e:2x4", "8 x TPU v5 lite"),
        ("v5e:4x4", "16 x TPU v5 lite"),
        ("v6e:2x4", "8 x TPU v6 lite"),
        ("v5p:2x2x1", "4 x TPU v5"),
    ],
)
def test_bert_base_compiles_for_tpus_that_are_not_there(tmp_path, command, topology, name):
    shop = ("--data.shop.impressions", 4000)
    done = command("plan", "--config", "ctr.py", *shop, *BERT_BASE, "--topology", topology, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"on {name}\n" in done.stdout and "attention: xla (auto: nothing can be timed here)" in done.stdout
    parameters, held = (numbers(done.stdout, label)[0] for label in ("parameters", "total"))
    # 12 layers of 12 x 768^2 weights in float32 and small tables; a chip holds them, the moments and more.
    assert 12 * 12 * 768**2 * 4 / 2**20 < parameters < 400 and held > 3 * parameters
    assert numbers(done.stdout, "arithmetic, ms")[0] > numbers(done.stdout, "arithmetic, ms")[1] > 0
    rows = 512 // int(name.split()[0])  # of a chip; at most ten arrays of a token's width, the slots among them
    assert numbers(done.stdout, "batches (2)")[0] < 2 * 10 * 4 * rows * 128 / 2**20
    sent = re.search(r"training │ all-reduce +│ +\d+ │ +\d+ │ +([\d,.]+) │", done.stdout)[1]
    # The gradients are summed once, in float32 or in parts of it as the compiler likes.
    assert 0.45 * parameters < float(sent.replace(",", "")) < 1.1 * parameters
    print(done.stdout)
