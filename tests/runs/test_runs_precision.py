"""What `model.dtype auto` is on a CPU, and which runs keep it."""

from dataclasses import replace

import pytest

from srsjax.config import Model, TrainConfig
from srsjax.hardware import Cpu
from srsjax.model.bert import BertConfig
from srsjax.runs import precision
from srsjax.runs.precision import FASTER, choose_precision, kept_precision, timed
from srsjax.runs.run_folder import RunFolder

AUTO = Model()
BASE = BertConfig(1000, hidden_size=768, intermediate_size=3072, num_heads=12)
WITH, WITHOUT, UNKNOWN = Cpu("X", ("avx2", "amx_bf16")), Cpu("X", ("avx2", "avx512f")), Cpu("CPU", None)


def never(*sizes):
    raise AssertionError(f"timed {sizes}")


def slower(factor: float):
    """A timing in which float32 takes so many times as long as bfloat16."""
    return lambda width, inner, training: (factor * 1e-3, 1e-3)


def test_without_bfloat16_units_it_is_float32_and_nothing_is_timed():
    found = choose_precision(AUTO, BASE, cpu=WITHOUT, timed=never)
    assert found == ("float32", "X (avx2, avx512f)", "precision: float32 (auto: no bfloat16 units; X (avx2, avx512f))")


@pytest.mark.parametrize("cpu", [WITH, UNKNOWN])
@pytest.mark.parametrize(
    ("factor", "dtype"), [(FASTER + 0.01, "bfloat16"), (FASTER - 0.01, "float32"), (0.5, "float32")]
)
def test_with_them_the_faster_one_by_a_margin(cpu, factor, dtype):
    found = choose_precision(AUTO, BASE, cpu=cpu, timed=slower(factor))
    assert found.dtype == dtype
    assert f"float32 {factor:.1f} ms, bfloat16 1.0 ms for 768 x 3072 weights" in found.said


def test_narrow_encoders_are_not_timed():
    narrow = BertConfig(1000, hidden_size=32, intermediate_size=64)
    assert choose_precision(AUTO, narrow, cpu=WITH, timed=never).dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_a_named_compute_type_is_what_it_says(dtype):
    found = choose_precision(Model(dtype=dtype), BASE, cpu=WITH, timed=never)
    assert (found.dtype, found.said) == (dtype, f"precision: {dtype} (model.dtype)")
    assert found.record(Model(dtype=dtype)) is None


@pytest.mark.parametrize("training", [True, False])
def test_both_are_really_timed(training):
    assert all(0 < seconds < 60 for seconds in timed(64, 128, training))


@pytest.fixture
def run(tmp_path):
    """`run(dtype, precision)`: the folder of a run that asked for `dtype` and has kept `precision`."""
    (tmp_path / "tokenizer").mkdir()

    def make(dtype: str, kept: dict | None) -> RunFolder:
        folder = RunFolder(tmp_path / "run")
        folder.create(TrainConfig(model=Model(dtype=dtype)), tmp_path / "tokenizer", {"fingerprint": "a"}, {}, kept)
        return folder

    return make


def test_what_was_chosen_is_kept_beside_the_config(run, monkeypatch):
    monkeypatch.setattr(precision.hardware, "cpu", lambda: WITH)
    chosen = choose_precision(AUTO, BASE, timed=slower(3))
    folder = run("auto", chosen.record(AUTO))
    assert folder.config().model.dtype == "auto"
    for resuming in (True, False):
        kept = kept_precision(folder, resuming=resuming)
        assert kept[:2] == chosen[:2] == ("bfloat16", "X (avx2, amx_bf16)")
        assert choose_precision(AUTO, BASE, kept, timed=never) == kept
        assert kept.apply(TrainConfig()).model == replace(AUTO, dtype="bfloat16")


def test_on_another_cpu_a_run_resumes_in_its_own_and_is_scored_in_the_cpus(run, monkeypatch):
    folder = run("auto", {"dtype": "bfloat16", "device": str(WITH)})
    monkeypatch.setattr(precision.hardware, "cpu", lambda: WITHOUT)
    resumed, scored = (kept_precision(folder, resuming=resuming) for resuming in (True, False))
    assert choose_precision(AUTO, BASE, resumed, timed=never).dtype == "bfloat16"
    assert resumed.device == str(WITH)  # kept on, so that a second resume does the same
    assert scored is None and choose_precision(AUTO, BASE, scored, timed=never).dtype == "float32"


def test_earlier_runs_are_float32_on_cpu_and_others_have_nothing_to_keep(run, tmp_path):
    assert kept_precision(RunFolder(tmp_path / "none"), resuming=True) is None
    assert kept_precision(run("bfloat16", None), resuming=True) is None
    assert kept_precision(run("auto", None), resuming=True).dtype == "float32"
