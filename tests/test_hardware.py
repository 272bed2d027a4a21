"""The table of chips, found by the names that JAX gives devices."""

import pytest

from srsjax.hardware import CHIPS, chip, utilisation


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
