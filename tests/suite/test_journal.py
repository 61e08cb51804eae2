"""The journal keeps what was written, whatever moment the process ended at."""

import pytest

from foveate.suite.journal import Journal


def answer(number: int) -> dict:
    return {"setting": "dense", "sample": f"read/{number}", "answer": "STOP"}


def test_what_was_appended_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    Journal(path, {"seed": 0}).append([answer(0), answer(1)])
    again = Journal(path, {"seed": 0})
    again.append([{"round": 0, "seconds": {}}, {"setting": "dense", "memory": {"peak_bytes": 1}}])
    last = Journal(path, {"seed": 0})
    assert last.has("dense", ["read/0", "read/1"]) and not last.has("dense", ["read/2"])
    assert len(last.rounds) == 1 and last.memory == {"dense": {"peak_bytes": 1}}


@pytest.mark.parametrize("cut", [1, 20, 50])
def test_a_line_that_was_cut_short_is_dropped_and_written_anew(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    Journal(path, {"seed": 0}).append([answer(0), answer(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Journal(path, {"seed": 0})
    assert again.has("dense", ["read/0"]) and not again.has("dense", ["read/1"])
    again.append([answer(1)])
    assert path.read_bytes() == whole


def test_a_plan_that_was_cut_short_is_a_new_beginning(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"plan": {"se')
    Journal(path, {"seed": 0}).append([answer(0)])
    assert Journal(path, {"seed": 0}).has("dense", ["read/0"])


def test_the_journal_of_another_plan_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "answers.jsonl"
    Journal(path, {"seed": 0, "batch": 4}).append([answer(0)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="other seed: give another folder"):
        Journal(path, {"seed": 1, "batch": 4})
    assert path.read_bytes() == before
