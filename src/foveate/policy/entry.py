"""One way to prune and what is known of it: method, figures, guard, and the questions it serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foveate.methods import Method


@dataclass(frozen=True)
class Figure:
    """A mean over samples with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What an entry costs and how faithful it is, on samples that it was not chosen on; shares of dense.

    Attributes:
        samples: how many.
        flops: exact FLOPs of the prompt in decoder and LM head, scoring included, as `pruned.trace` counts them.
        whole: the same with vision tower and projector, which no method changes.
        agreement: answers that are the dense model's, word for word.
        kl: KL(dense || pruned), mean over the answer's tokens, in nats.
        speed: dense time to the first token over pruned; None if it was not measured.
    """

    samples: int
    flops: Figure
    whole: Figure
    agreement: Figure
    kl: Figure
    speed: Figure | None = None


@dataclass(frozen=True)
class Guard:
    """When a pruned answer is not trusted: below a threshold the prompt runs again without pruning.

    Attributes:
        signal: of the first token's distribution: "margin", log-probability of the likeliest token over the next one;
            "entropy", in nats and with its sign turned, so that less is less certain in both.
        threshold: a prompt whose signal is below runs again.
        alpha, confidence: with this confidence at most alpha of the answers differ from the dense model's.
        fresh: of the next so many answers; None: of all in the long run.
        samples: that the threshold was set on.
        rerun: the share of them that ran again.
    """

    signal: str
    threshold: float
    alpha: float
    confidence: float
    samples: int
    rerun: float
    fresh: int | None = None


@dataclass(frozen=True)
class Rule:
    """Which questions an entry is for, by their text alone, in lower case.

    Attributes:
        first: the question begins with one of these words.
        words: one of these words (or rows of words) is in it.
    """

    first: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def fits(self, question: str) -> bool:
        said = " ".join(re.findall(r"\w+", question.lower()))
        begins = any(f"{said} ".startswith(f"{word} ") for word in self.first)
        return begins or any(f" {word} " in f" {said} " for word in self.words)


@dataclass(frozen=True)
class Entry:
    """One way to prune, and what is known of it.

    Attributes:
        method: how tokens are dropped; `Dense()` leaves this kind of prompt alone.
        rule: which questions it serves; None for those that no rule fits.
        budget: what was asked for, such as {"flops": 0.35, "agreement": 0.99}.
        data: what it was found on: {"source", "seed", "searched", "quoted", "guarded"}, the last three numbers of
            samples.
        measured: None if nothing was.
        guard: None if no bound was asked for.
    """

    method: Method
    rule: Rule | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    guard: Guard | None = None
