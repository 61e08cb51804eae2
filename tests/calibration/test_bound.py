"""The test behind the guard, against chances computed exactly, and the bound itself over many draws."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from foveate.calibration.bound import (
    ALWAYS,
    NEVER,
    Seen,
    allowed,
    binomial,
    choose,
    drawn,
    needed,
    risks_of,
    row_of_thresholds,
)


def test_the_binomial_is_exact():
    p = Fraction(1, 50)
    exact = sum(comb(300, k) * p**k * (1 - p) ** (300 - k) for k in range(4))
    assert binomial(3, 300, 0.02) == pytest.approx(float(exact), rel=1e-9)


def test_the_hypergeometric_is_exact():
    exact = Fraction(sum(comb(12, k) * comb(88, 30 - k) for k in range(3)), comb(100, 30))
    assert drawn(2, 30, 70, 12) == pytest.approx(float(exact), rel=1e-9)
    assert drawn(30, 30, 70, 12) == pytest.approx(1.0)


@pytest.mark.parametrize("fresh", (None, 500))
@pytest.mark.parametrize("alpha", (0.01, 0.02, 0.05))
def test_so_many_may_differ_and_no_more(alpha, fresh):
    least = needed(alpha, 0.95, fresh)
    assert allowed(least, alpha, 0.95, fresh) == 0 and allowed(least - 1, alpha, 0.95, fresh) == -1
    if fresh is None:
        assert (1 - alpha) ** least <= 0.025 < (1 - alpha) ** (least - 1)  # half of the level is kept back
        most = allowed(2000, alpha, 0.95)
        assert binomial(most, 2000, alpha) <= 0.025 < binomial(most + 1, 2000, alpha)


def test_a_bound_on_few_fresh_prompts_takes_more_than_one_on_all():
    assert allowed(1000, 0.02, 0.95, 100) < allowed(1000, 0.02, 0.95, 10_000) <= allowed(1000, 0.02, 0.95)


def population(count: int, seed: int) -> list[Seen]:
    """Prompts of two kinds: one whose signal tells much, and one that differs whatever the signal says."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        kind = "good" if rng.random() < 0.8 else "bad"
        signal = float(rng.exponential(2.0))
        chance = 0.3 * np.exp(-2 * signal) if kind == "good" else 0.6
        found.append(Seen(kind, signal, bool(rng.random() < chance), 35, 90, 100))
    return found


def test_the_row_goes_from_dense_to_never_again():
    row = row_of_thresholds(population(400, 0))
    assert row[0] == {"good": ALWAYS, "bad": ALWAYS} and row[-1] == {"good": NEVER, "bad": NEVER}
    costs = [sum(s.costs(t[s.kind]) for s in population(400, 0)) for t in row]
    assert costs == sorted(costs, reverse=True)


def test_risks_add_up_to_the_errors_and_fall_with_the_signal():
    good = sorted((s for s in population(2000, 5) if s.kind == "good"), key=lambda s: s.signal)
    risks = risks_of(good)
    assert sum(risks) == pytest.approx(sum(s.differs for s in good), abs=1)
    assert risks == sorted(risks, reverse=True) and risks[0] > 5 * risks[-1]
    never = risks_of([Seen("x", s.signal, False, 35, 90, 100) for s in good])
    assert 0 < sum(never) < 1 and never == sorted(never, reverse=True)
    assert all(0 <= risk <= 1 for risk in risks_of([Seen("x", 1.0, True, 35, 90, 100)] * 3))


def test_a_tight_bound_is_met_by_kinds_that_never_differ():
    """The row does not begin with a leap to thresholds that let errors through."""
    rng = np.random.default_rng(0)
    safe = [Seen("safe", float(x), False, 35, 90, 100) for x in rng.exponential(2.0, 500)]
    hard = [Seen("hard", float(x), bool(rng.random() < 0.3), 35, 90, 100) for x in rng.exponential(2.0, 500)]
    thresholds = choose(row_of_thresholds([*safe[:200], *hard[:200]]), [*safe[200:], *hard[200:]], 0.02, 0.95)
    assert thresholds == {"safe": NEVER, "hard": ALWAYS}


@pytest.mark.parametrize("fresh", (None, 600))
@pytest.mark.parametrize("alpha", (0.02, 0.05))
def test_the_bound_holds_in_as_many_draws_as_it_says(alpha, fresh):
    row = row_of_thresholds(population(300, 1))
    held, rerun, large = [], [], population(20_000, 2)
    signal, differs = np.array([s.signal for s in large]), np.array([s.differs for s in large])
    good = np.array([s.kind == "good" for s in large])
    for split in range(200):
        thresholds = choose(row, population(600, 100 + split), alpha, 0.95, fresh)
        trusted = signal >= np.where(good, thresholds["good"], thresholds["bad"])
        new = slice(None) if fresh is None else slice(fresh * (split % 33), fresh * (split % 33 + 1))
        held.append((trusted & differs)[new].mean() <= alpha)
        rerun.append(1 - trusted.mean())
    assert np.mean(held) >= 0.95
    assert np.mean(rerun) < 0.7


def test_without_enough_samples_everything_is_dense():
    row = row_of_thresholds(population(400, 0))
    assert choose(row, population(50, 3), 0.01, 0.95) == row[0]
