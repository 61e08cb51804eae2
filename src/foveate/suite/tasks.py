"""The tasks of the benchmark: questions about held-out scenes, drawn from a seed, each with its field's metric.

One task is not drawn: easy-VQA's test split, where its package is installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
from PIL import Image

from foveate.suite.easy_vqa import easy_vqa
from foveate.suite.questions import NEGATIVES, TASKS, Question, existence
from foveate.suite.scenes import Scene, draw_scene

METRICS_OF = {  # the first is the task's score, others are reported beside it
    "existence": ("yes-no",),
    "colour": ("vqa",),
    "shape": ("exact",),
    "count": ("vqa",),
    "position": ("exact",),
    "relation": ("yes-no",),
    "name": ("exact",),
    "read": ("exact", "anls"),
    "choice": ("choice",),
    "describe": ("cider",),
    "easy-vqa": ("exact",),
}
DRAWN = tuple(TASKS)  # what a benchmark asks if nothing else is said
LONGEST = {"cider": 48}  # tokens of an answer, by metric
SHORT = 16  # of all others


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    Attributes:
        task, number: together its name.
        answers: all accepted, or what several people answered; the first is a letter for a choice.
        metrics: of the task; the first is its score.
        kind: POPE's kind of negatives (random, popular, adversarial) that the question belongs to, or None.
        picture: draws or reads the picture, as RGB.
    """

    task: str
    number: int
    question: str
    answers: tuple[str, ...]
    metrics: tuple[str, ...]
    kind: str | None
    picture: Callable[[], Image.Image]

    @property
    def name(self) -> str:
        return f"{self.task}/{self.number}"

    @property
    def longest(self) -> int:
        """The most tokens that an answer may have."""
        return LONGEST.get(self.metrics[0], SHORT)


def draw(tasks: Sequence[str], limit: int, seed: int) -> list[Sample]:
    """`limit` questions of each task, task by task. All tasks look at the same scenes where these allow a question.

    The first questions are the same for every limit. Raises ValueError for an unknown task, ImportError for easy-VQA
    without its package.
    """
    for task in tasks:
        if task not in METRICS_OF:
            raise ValueError(f'there is no task "{task}"; there are {", ".join(METRICS_OF)}, or a folder of your own')
    drawn: dict[str, list[Sample]] = {task: [] for task in tasks}
    for number in count(seed * 10**6):
        wanting = [task for task in drawn if task in DRAWN and len(drawn[task]) < limit]
        if not wanting:
            break
        scene = draw_scene("held-out", number)
        for task in wanting:
            place = len(drawn[task])
            rng = np.random.default_rng([7, seed, number, list(METRICS_OF).index(task)])
            question = pose(task, scene, rng, place)
            if question is not None:
                kind = kind_of(place) if task == "existence" else None
                picture = partial(draw_picture, number)
                drawn[task].append(
                    Sample(task, place, question.question, question.answers, METRICS_OF[task], kind, picture)
                )
    if "easy-vqa" in drawn:
        drawn["easy-vqa"] = published(limit, seed)
    return [sample for task in drawn.values() for sample in task]


def published(limit: int, seed: int) -> list[Sample]:
    """`limit` questions of easy-VQA's test split, in an order that follows from the seed."""
    asked = [(shown, *pair) for shown in easy_vqa("test") for pair in shown.questions]
    order = np.random.default_rng([7, seed]).permutation(len(asked))[:limit]
    return [
        Sample("easy-vqa", place, question, (answer,), METRICS_OF["easy-vqa"], None, shown.picture)
        for place, (shown, question, answer) in enumerate(asked[i] for i in order)
    ]


def pose(task: str, scene: Scene, rng: np.random.Generator, place: int) -> Question | None:
    """A question of a task about a scene. Existence takes turns, as POPE does: for each kind a yes, then a no."""
    if task == "existence":
        return existence(scene, rng, None if place % 2 == 0 else kind_of(place))
    return TASKS[task](scene, rng)


def kind_of(place: int) -> str:
    """The kind of negatives of existence question number `place`, for its yes and its no alike."""
    return NEGATIVES[place // 2 % len(NEGATIVES)]


def draw_picture(number: int) -> Image.Image:
    return draw_scene("held-out", number).picture
