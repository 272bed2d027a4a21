"""What a device would hold, where the compiler refuses the program; messages of libtpu 0.0.50 and of older ones."""

import pytest

from srsjax.planning.memory import Memory, refused_temporary

GIB, MIB = 2**30, 2**20
HELD = Memory(parameters=1 * GIB, optimizer=2 * GIB, batch=0.5 * GIB, temporary=0)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (25.76G) exceeds available HBM (15.75G). HLO module: jit_train_step.",
            25.76 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of 15.48G hbm. Exceeded hbm "
            "capacity by 4.52G.\nTotal hbm usage >= 20.52G:\n    reserved 530.00M",
            (20.52 - 3.5) * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 900.0M of 800.0M.", 50 * MIB),  # less than what it holds
        ("RESOURCE_EXHAUSTED: no number at all", 50 * MIB),
    ],
)
def test_what_a_refused_program_wanted(said, expected):
    assert refused_temporary(said, HELD, least=50 * MIB) == pytest.approx(expected)
