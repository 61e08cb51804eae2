"""Means of scores and paired bootstrap intervals."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles


def resamples(sizes: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """For each task of so many samples, (RESAMPLES, samples): how often a resample draws each sample.

    All that is compared is compared on the same resamples: that makes the bootstrap a paired one.
    """
    rng = np.random.default_rng(seed)
    return [counts(rng, size) for size in sizes]


def counts(rng: np.random.Generator, size: int) -> np.ndarray:
    drawn = rng.integers(size, size=(RESAMPLES, size)) + size * np.arange(RESAMPLES)[:, None]  # rows apart
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * size).reshape(RESAMPLES, size)


def means(scores: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(resamples,): the mean score of each resample. scores: (samples,), NaN for what failed and is left out."""
    valid = ~np.isnan(scores)
    weight = drawn @ valid.astype(float)  # (resamples,)
    return np.divide(drawn @ np.where(valid, scores, 0.0), weight, out=np.full(len(drawn), np.nan), where=weight > 0)


def mean(scores: np.ndarray) -> float:
    """NaN if all failed."""
    valid = scores[~np.isnan(scores)]
    return float(valid.mean()) if len(valid) else float("nan")


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a figure, from its values in all resamples."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)
