"""What `profile.steps` may be; traces themselves are read in tests/e2e/test_e2e_observe.py."""

from __future__ import annotations

import pytest

from srsjax.errors import InputError
from srsjax.training.profile import profiled_steps


def test_first_and_last_step_are_included():
    assert list(profiled_steps("10:15", 15)) == [10, 11, 12, 13, 14, 15]
    assert list(profiled_steps("1:1")) == [1] and not profiled_steps("")


@pytest.mark.parametrize("text", ["10", "10:", ":15", "15:10", "0:3", "-1:3", "1:2:3", "a:b", "1.5:3", "1 : 2", "²:³"])
def test_nonsense_is_refused(text):
    with pytest.raises(InputError, match=r"profile\.steps: found .*expected FIRST:LAST"):
        profiled_steps(text)


def test_steps_that_the_run_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"found '10:15', expected steps up to 14"):
        profiled_steps("10:15", 14)
