"""What a calibration looks at: three sets of samples that have nothing in common, and the kinds of their questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.policy.entry import Rule
from foveate.suite import folder
from foveate.suite.tasks import DRAWN, Sample, draw

DEFAULT = "default"
KINDS: dict[str, Rule] = {  # told apart by a question's text alone; the first that fits
    "choice": Rule(words=("b", "which of these", "option", "options")),
    "count": Rule(first=("count",), words=("how many", "number of")),
    "reading": Rule(first=("read",), words=("say", "says", "written", "which text", "what text", "spell")),
    "caption": Rule(
        first=("describe", "caption"), words=("caption", "in this picture", "in this image", "the image show")
    ),
    "place": Rule(
        first=("where",), words=("left", "right", "top", "bottom", "above", "below", "corner", "part of the picture")
    ),
    "yes-no": Rule(
        first=("is", "are", "was", "were", "do", "does", "did", "can", "could", "has", "have", "had", "will", "would")
    ),
    "short": Rule(first=("what", "which", "who", "name", "tell"), words=("which color", "which colour")),
}
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


def kind_of(question: str, among: Collection[str] = KINDS) -> str:
    """The kind of a question: the first of some kinds whose rule fits, else "default"."""
    return next((kind for kind, rule in KINDS.items() if kind in among and rule.fits(question)), DEFAULT)


def common(questions: Sequence[str], least: int) -> list[str]:
    """The kinds that at least so many of the questions are of."""
    seen = Counter(map(kind_of, questions))
    return [kind for kind in KINDS if seen[kind] >= least]
