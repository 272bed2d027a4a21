"""The table of chips, found by the names that JAX gives devices, and what Linux says of the CPU."""

import pytest

from srsjax.hardware import CHIPS, chip, cpu, utilisation


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_device_kind_names_its_chip(kind, name):
    assert chip(kind) is CHIPS[name]


def test_what_is_not_in_the_table_has_no_peak():
    assert chip("cpu") is None and chip("Radeon") is None


def test_utilisation_is_work_over_what_the_devices_could_have_done():
    # 60 Tflop in a quarter of a second are 240 Tflop/s; two v5e chips do 2 x 197
    assert utilisation(60e12, 0.25, 2 * chip("TPU v5 lite").flops) == pytest.approx(240 / 394)


@pytest.mark.parametrize(
    ("text", "expected", "bfloat16"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx2 fma\n\nmodel name\t: no\n", "AMD EPYC (avx2)", False),
        ("model name\t: Intel\nflags\t\t: avx2 avx512f amx_bf16 amx_tile\n", "Intel (avx2, avx512f, amx_bf16)", True),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16\n", "CPU (asimd, sve, bf16)", True),
        ("model name\t: old\nflags\t\t: fpu\n", "old", False),
        (None, "CPU", None),
    ],
)
def test_the_cpu_of_this_machine(tmp_path, text, expected, bfloat16):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    found = cpu(file)
    assert (str(found), found.has_bfloat16) == (expected, bfloat16)
