"""What reads input never crashes on damaged input; `fuzz.py` and `fuzz_readers.py` try very many.

python tests/faults/fuzz.py --inputs 100000 --seed 0
python tests/faults/fuzz_readers.py --inputs 100000 --seed 0
"""

from __future__ import annotations

import pytest
from fuzz import Fuzzer, failures_of, fuzz
from fuzz_readers import READERS, Readers

INPUTS = 200


def test_damaged_input_is_read_or_refused_in_one_line(tmp_path):
    found = fuzz(range(INPUTS), 0, tmp_path)
    assert len(found) == INPUTS and not failures_of(found)
    outcomes = set(found.values())
    assert {f"{target}: refused" for target in ("tables", "stores", "runs", "options")} <= outcomes
    assert {f"{target}: success" for target in ("tables", "stores", "runs", "options")} <= outcomes


def test_each_reader_reads_damaged_input_or_refuses_it_in_one_line(tmp_path):
    made = Readers(tmp_path, 0)
    for reader in READERS:
        found = {made.run(reader, number) for number in range(60)}
        assert found <= {f"{reader}: success", f"{reader}: refused"} and f"{reader}: refused" in found, found


def test_the_fuzz_sees_what_is_not_refused(tmp_path, monkeypatch):
    """Without it, the test above could not fail."""
    fuzzer = Fuzzer(tmp_path, 0)

    def fails(chance, work):
        raise ValueError("no line for a user")

    for target in ("tables", "stores", "runs", "options"):
        monkeypatch.setattr(fuzzer, target, fails)
    assert fuzzer.run(0).startswith("FAILURE") and "ValueError" in fuzzer.run(1)
    with pytest.raises(ValueError, match="no line"):
        fuzzer.run(0, catch=False)
