"""What a calibration looks at: three sets of samples that have nothing in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.suite import folder
from foveate.suite.tasks import DRAWN, Sample, draw

EVERYTHING = 10**9


@dataclass(frozen=True)
class Sets:
    """Samples to search on, to quote figures of, and to set the guard's threshold on."""

    searched: list[Sample]
    quoted: list[Sample]
    guarded: list[Sample]


def sets_of(data: str, tasks: Sequence[str], sizes: tuple[int, int, int], seed: int) -> Sets:
    """So many samples of each task for each set: of the embedded suite, or of a user's folder.

    Sets of the suite are of different scenes. A folder's rows are shared out by the seed; where there are too few, in
    proportion to the sizes.

    Raises:
        ValueError: no such folder, an unknown task, or a set with nothing in it.
    """
    if data == "suite":
        chosen = list(tasks or DRAWN)
        return Sets(*(draw(chosen, size, 3 * seed + place) if size else [] for place, size in enumerate(sizes)))
    place = Path(data).expanduser()
    if not place.is_dir():
        raise ValueError(f'there is no folder "{data}"; --data is suite or a folder with a JSONL file')
    found: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    by_task: dict[str, list[Sample]] = {}
    for sample in folder.read(place, EVERYTHING, seed):
        by_task.setdefault(sample.task, []).append(sample)
    for of_task in by_task.values():
        drawn = [of_task[i] for i in np.random.default_rng(seed).permutation(len(of_task))]
        part = min(1.0, len(drawn) / sum(sizes))
        start = 0
        for part_of, size in zip(found, sizes, strict=True):
            part_of += drawn[start : start + int(part * size)]
            start += int(part * size)
    whole = Sets(*found)
    if not whole.searched or not whole.quoted:
        raise ValueError(f"{place} has too few questions to search on some and quote others: give it more")
    return whole
