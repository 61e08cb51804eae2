"""A bound on what pruning changes: thresholds for running prompts again, and the test that lets one be used.

Learn then test (Angelopoulos et al. 2021, https://arxiv.org/abs/2110.01052): thresholds stand in a row, from "run all
again" to "run none again". They are tested one after the other on calibration samples, each at the whole level, and
the last before the first that fails is used: then with the confidence asked for no more than alpha of the answers
differ. It takes that the row was made from other samples, and that calibration samples and later prompts are
exchangeable; nothing about the model or the signal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NEVER = -1e6  # no signal is below: nothing runs again
ALWAYS = 1e6  # every signal is below: the prompt is not pruned at all
STEPS = 96  # thresholds in a row
UNSEEN = 0.5  # wrong answers of a kind beside those that its risks tell: a kind with few samples is trusted late
RESERVE = 0.5  # of the level: the other half is kept back, so that a count over a few hundred runs shows the bound too


@dataclass(frozen=True)
class Seen:
    """What the guard has to know of one pruned prompt.

    Attributes:
        kind: of the prompt. signal: what the threshold is compared with.
        differs: the pruned answer is not the dense one.
        pruned, again, dense: FLOPs of the pruned prompt, of its layers run again, and of the dense prompt.
    """

    kind: str
    signal: float
    differs: bool
    pruned: int
    again: int
    dense: int

    def costs(self, threshold: float) -> int:
        """What the prompt costs in all."""
        if threshold >= ALWAYS:
            return self.dense
        return self.pruned + (self.again if self.signal < threshold else 0)

    def wrong(self, threshold: float) -> bool:
        """Whether an answer is given that is not the dense one."""
        return self.differs and self.signal >= threshold


Thresholds = Mapping[str, float]  # by kind


def row_of_thresholds(samples: Sequence[Seen]) -> list[dict[str, float]]:
    """Thresholds for every kind, from those that trust nothing to those that cost least.

    Each minimises cost + price x expected wrong answers over the samples, for a falling price of a wrong answer: so
    every kind bears its part of the errors where that saves most. Errors are expected, not counted: thresholds just
    beyond the last error that was seen would let the next one through, and the row would begin with a leap.
    """
    kinds: dict[str, list[Seen]] = {}
    for seen in samples:
        kinds.setdefault(seen.kind, []).append(seen)
    fits = {kind: options(found) for kind, found in kinds.items()}
    row = [dict.fromkeys(kinds, ALWAYS)]
    for step in range(STEPS):
        price = 10.0 ** (3 - 6 * step / (STEPS - 1))  # dense prompts that a wrong answer is worth
        chosen = {kind: min(found, key=lambda o: (o[1] + price * o[2], -o[0]))[0] for kind, found in fits.items()}
        if chosen != row[-1]:
            row.append(chosen)
    return row


def options(samples: Sequence[Seen]) -> list[tuple[float, float, float]]:
    """Thresholds worth a thought, each with its cost, in dense prompts, and the wrong answers to be expected."""
    dense = sum(seen.dense for seen in samples) / len(samples)
    values = sorted({seen.signal for seen in samples})
    risks = risks_of(samples)
    found = []
    for threshold in (NEVER, *((a + b) / 2 for a, b in pairwise(values)), ALWAYS):
        cost = sum(seen.costs(threshold) for seen in samples) / dense
        trusted = [risk for seen, risk in zip(samples, risks, strict=True) if seen.signal >= threshold]
        found.append((threshold, cost, sum(trusted) + UNSEEN * len(trusted) / len(samples)))
    return found


def risks_of(samples: Sequence[Seen]) -> list[float]:
    """Each sample's chance of a wrong answer, by its signal: a logistic regression of `differs`.

    Its slope is drawn towards -1 per standard deviation, so that samples without any error have one too.
    """
    signal = np.array([seen.signal for seen in samples])
    differs = np.array([float(seen.differs) for seen in samples])
    x = np.stack([np.ones(len(samples)), (signal - signal.mean()) / (signal.std() + 1e-9)], 1)  # (n, 2)
    prior, strength = np.array([0.0, -1.0]), np.array([1e-3, 1.0])
    odds = (differs.sum() + 0.5) / (len(samples) - differs.sum() + 0.5)
    weights = np.array([math.log(odds), -1.0])
    for _ in range(50):  # Newton, with steps that cannot overshoot far
        risk = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (risk - differs) + strength * (weights - prior)
        bend = (x * (risk * (1 - risk))[:, None]).T @ x + np.diag(strength)
        weights = weights - np.linalg.solve(bend, slope).clip(-2, 2)
    return (1 / (1 + np.exp(-x @ weights))).tolist()


def choose(
    row: Sequence[Thresholds], samples: Sequence[Seen], alpha: float, confidence: float, fresh: int | None = None
) -> Thresholds:
    """The last thresholds of the row that pass the test, and all before them.

    Args:
        samples: for calibration, other than those that the row was made from.
        alpha: the share of answers that may differ.
        fresh: the bound is to hold for the answers to so many new prompts; None: for the share in the long run.
    """
    most = allowed(len(samples), alpha, confidence, fresh)
    best = row[0]
    for thresholds in row:
        if sum(seen.wrong(thresholds[seen.kind]) for seen in samples) > most:
            break
        best = thresholds
    return best


def allowed(samples: int, alpha: float, confidence: float, fresh: int | None = None) -> int:
    """How many of the calibration answers may differ for the test to pass; -1 if not even none is enough.

    Against a long-run share above alpha, the chance of so few is binomial. Against more than alpha of `fresh` prompts
    it is hypergeometric: of all that differ, calibration and fresh prompts each have a random part.
    """
    level, most = (1 - confidence) * RESERVE, -1
    over = 0 if fresh is None else math.floor(alpha * fresh) + 1  # the fewest that break the bound
    while most + 1 <= samples * alpha:
        few = most + 1
        chance = binomial(few, samples, alpha) if fresh is None else drawn(few, samples, fresh, few + over)
        if chance > level:
            break
        most = few
    return most


def needed(alpha: float, confidence: float, fresh: int | None = None) -> int:
    """The fewest calibration samples with which the test can pass at all."""
    low, high = 1, 1
    while allowed(high, alpha, confidence, fresh) < 0:
        low, high = high, 2 * high
        if high > 10**9:
            raise ValueError(f"no number of samples can show that at most {alpha:g} of {fresh} answers differ")
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if allowed(middle, alpha, confidence, fresh) < 0 else (low, middle)
    return low


def binomial(most: int, n: int, p: float) -> float:
    """P(at most `most` of n), each with probability p."""
    return sum(math.exp(log_choose(n, k) + k * math.log(p) + (n - k) * math.log1p(-p)) for k in range(min(most, n) + 1))


def drawn(most: int, n: int, others: int, marked: int) -> float:
    """P(at most `most` marked among n), where n are drawn from n + others of which so many are marked."""
    if marked > n + others:
        return 0.0
    whole = log_choose(n + others, n)
    few = range(max(0, marked - others), min(most, marked, n) + 1)
    return sum(math.exp(log_choose(marked, k) + log_choose(n + others - marked, n - k) - whole) for k in few)


def log_choose(n: int, k: int) -> float:
    return -math.inf if not 0 <= k <= n else math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
