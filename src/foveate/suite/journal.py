"""A file that grows by a line for everything found out, so that a killed run goes on where it stopped."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Records on disk, one JSON object a line; the first is the plan of the run.

    What was appended survives the end of the process at any moment: a line that was cut short is dropped when the
    journal is opened again. Two runs must not write to one journal at once.

    Attributes:
        answers: (setting, sample) -> record of that answer.
        rounds: records of timed rounds, in order.
        memory: setting -> record of its memory.
    """

    def __init__(self, path: Path, plan: Mapping[str, Any]):
        """Open or begin the journal of this plan.

        Raises:
            ValueError: the file is no journal, or that of another plan; the message names what differs.
        """
        self.path = path
        self.answers: dict[tuple[str, str], dict[str, Any]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.memory: dict[str, dict[str, Any]] = {}
        plan = json.loads(json.dumps(plan))  # as it comes back from the file
        lines = whole_lines(path)
        records = [record_of(line, number, path) for number, line in enumerate(lines, 1)]
        if records:
            check_plan(records[0].get("plan"), plan, path)
        for number, record in enumerate(records[1:], 2):
            try:
                self._note(record)
            except (KeyError, TypeError):
                raise broken(number, path) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._write([{"plan": plan}])

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Records of a `setting` and a `sample`, of a timed `round`, or of the `memory` of a `setting`."""
        records = list(records)
        self._write(records)
        for record in records:
            self._note(record)

    def has(self, setting: str, samples: Iterable[str]) -> bool:
        return all((setting, sample) in self.answers for sample in samples)

    def _note(self, record: dict[str, Any]) -> None:
        if "sample" in record:
            self.answers[record["setting"], record["sample"]] = record
        elif "round" in record:
            self.rounds.append(record)
        elif "memory" in record:
            self.memory[record["setting"]] = record["memory"]

    def _write(self, records: list[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        with self.path.open("ab", buffering=0) as file:
            file.write(data)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that were written to their end."""
    if not path.exists():
        return []
    return path.read_bytes().split(b"\n")[:-1]


def record_of(line: bytes, number: int, path: Path) -> dict[str, Any]:
    """The record in a line; ValueError if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise broken(number, path) from None
    if not isinstance(record, dict):
        raise broken(number, path)
    return record


def broken(number: int, path: Path) -> ValueError:
    return ValueError(f"{path} line {number} is no record of a run: give another folder with -o, or delete that file")


def check_plan(found: Any, plan: Mapping[str, Any], path: Path) -> None:
    if found == plan:
        return
    found = found if isinstance(found, dict) else {}
    keys = sorted(key for key in {*found, *plan} if found.get(key) != plan.get(key))
    raise ValueError(
        f"{path} is from a run with other {', '.join(keys)}: give another folder with -o, or delete that file"
    )
