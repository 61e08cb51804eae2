"""Kinds of question, told apart by their text alone: the rules that a policy's entries are made with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from foveate.policy.policy import Rule

DEFAULT = "default"
KINDS: dict[str, Rule] = {  # the first that fits
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


def kind_of(question: str, among: Collection[str] = KINDS) -> str:
    """The kind of a question: the first of some kinds whose rule fits, else "default"."""
    return next((kind for kind, rule in KINDS.items() if kind in among and rule.fits(question)), DEFAULT)


def common(questions: Sequence[str], least: int) -> list[str]:
    """The kinds that at least so many of the questions are of."""
    seen = Counter(map(kind_of, questions))
    return [kind for kind in KINDS if seen[kind] >= least]
