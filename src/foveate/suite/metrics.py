"""Scores: how right an answer is, by the rule that each field uses. Strings in, one number for each answer out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.suite.cider import cider
from foveate.suite.words import plain, vqa_form

Truths = tuple[str, ...]


def yes_no(answer: str, truths: Truths) -> float:
    """1 if the first yes or no in the answer is the true one. An answer with neither is wrong."""
    return float(said_yes(answer) is (truths[0] == "yes"))


def said_yes(answer: str) -> bool | None:
    """Whether the first yes or no in the answer is a yes; None without either."""
    found = re.search(r"\b(yes|no|not)\b", answer.lower())
    return None if found is None else found[1] == "yes"


def exact(answer: str, truths: Truths) -> float:
    """1 if the answer is one of the true ones, but for case, spaces and marks at either end."""
    return float(plain(answer) in {plain(truth) for truth in truths})


def vqa(answer: str, truths: Truths) -> float:
    """VQA accuracy (Antol et al., ICCV 2015): min(1, people who said so / 3), averaged over leaving out one person.

    Compared in VQA's normal form. Fewer than four true answers are no poll of people: then any of them counts 1.
    """
    said, truth = vqa_form(answer), [vqa_form(truth) for truth in truths]
    if len(truth) < 4:
        return float(said in truth)
    agree = truth.count(said)
    others = [agree - (one == said) for one in truth]  # who agree among the people other than this one
    return sum(min(1.0, count / 3) for count in others) / len(truth)


def choice(answer: str, truths: Truths) -> float:
    """1 if the answer gives the right letter, as in "b", "(B)", "B. a dog", "the answer is B", or the option's words.

    truths: the letter, then perhaps the option's words.
    """
    letter = said_letter(answer)
    return float(letter == truths[0].lower()) if letter else exact(answer, truths[1:])


def said_letter(answer: str) -> str | None:
    """The letter of the option that the answer chooses, lower case; None if it gives none."""
    text = answer.strip()
    start = re.match(r"\(?([a-z])(?:$|[).:,]|\s*$)", text, re.IGNORECASE)
    told = re.search(r"\b(?:answer|option|choice)(?: is)?:? *\(?([a-z])\b(?! [a-z])", text, re.IGNORECASE)
    found = start or told
    return found[1].lower() if found else None


def anls(answer: str, truths: Truths) -> float:
    """Average normalised Levenshtein similarity (Biten et al., ICCV 2019): of the nearest truth, 0 below one half."""
    return max(similarity(" ".join(answer.lower().split()), " ".join(truth.lower().split())) for truth in truths)


def similarity(a: str, b: str, threshold: float = 0.5) -> float:
    value = 1 - edits(a, b) / max(len(a), len(b), 1)
    return value if value >= threshold else 0.0


def edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


@dataclass(frozen=True)
class Metric:
    """A metric as tables show it: `title`, and `scale`, what a score of 1 is printed as."""

    title: str
    scale: float
    of_one: Callable[[str, Truths], float] | None  # None: needs all answers of a task together


METRICS = {
    "yes-no": Metric("yes/no accuracy, %", 100, yes_no),
    "exact": Metric("exact match, %", 100, exact),
    "vqa": Metric("VQA accuracy, %", 100, vqa),
    "choice": Metric("choice letter, %", 100, choice),
    "anls": Metric("ANLS, %", 100, anls),
    "cider": Metric("CIDEr-D, 0 to 10", 1, None),
}


def score(metric: str, answers: Sequence[str | None], truths: Sequence[Truths]) -> np.ndarray:
    """(samples,) float64: the score of each answer; NaN where there is none because the sample failed."""
    of_one = METRICS[metric].of_one
    if of_one is None:
        found = cider({i: answer for i, answer in enumerate(answers) if answer is not None}, truths)
    else:
        found = {i: of_one(answer, truths[i]) for i, answer in enumerate(answers) if answer is not None}
    return np.array([found.get(i, np.nan) for i in range(len(answers))])


def pope(answers: Sequence[str | None], truths: Sequence[Truths]) -> dict[str, float]:
    """What POPE reports of yes/no questions (Li et al., EMNLP 2023), yes being the positive class.

    Failed samples are left out. `neither` is the share of answers without a yes or a no: wrong, and not saying yes.
    """
    pairs = [(said_yes(a), t[0] == "yes") for a, t in zip(answers, truths, strict=True) if a is not None]
    hits = sum(said is True and truth for said, truth in pairs)
    yes, positive = sum(said is True for said, _ in pairs), sum(truth for _, truth in pairs)
    right, total = sum(said is truth for said, truth in pairs), max(len(pairs), 1)
    return {
        "accuracy": right / total,
        "precision": hits / max(yes, 1),
        "recall": hits / max(positive, 1),
        "f1": 2 * hits / max(yes + positive, 1),
        "yes_ratio": yes / total,
        "neither": sum(said is None for said, _ in pairs) / total,
    }
