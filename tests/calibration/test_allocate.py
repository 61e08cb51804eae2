"""A budget is shared out among kinds so that their mean cost is within it and the loss small."""

from itertools import product

import numpy as np
import pytest

import foveate
from foveate.calibration.allocate import allocate
from foveate.calibration.search import Candidate


def option(cost: float, loss: float, agreement: float | None = None) -> Candidate:
    return Candidate("x", foveate.VTW(1), None, loss, cost, 1 - loss if agreement is None else agreement, loss)


def mean(chosen, sizes, what):
    return sum(sizes[k] * getattr(c, what) for k, c in chosen.items()) / sum(sizes.values())


@pytest.mark.parametrize("seed", range(20))
def test_it_is_nearly_as_good_as_trying_everything(seed):
    rng = np.random.default_rng(seed)
    sizes = {"a": 10, "b": 30, "c": 20}
    options = {k: [option(1.0, 0.0)] + [option(*rng.uniform(0.1, 1.0, 2)) for _ in range(6)] for k in sizes}
    chosen = allocate(options, sizes, 0.5, dict.fromkeys(sizes, 0.0))
    everything = (dict(zip(sizes, few, strict=True)) for few in product(*options.values()))
    best = min(mean(one, sizes, "loss") for one in everything if mean(one, sizes, "cost") <= 0.5)
    assert mean(chosen, sizes, "cost") <= 0.5 + 1e-9
    assert mean(chosen, sizes, "loss") <= best + 0.06


def test_kinds_that_need_little_pay_for_those_that_need_more():
    options = {"easy": [option(0.2, 0.0), option(0.35, 0.0)], "hard": [option(0.35, 0.5), option(0.5, 0.1)]}
    chosen = allocate(options, {"easy": 10, "hard": 10}, 0.35, {"easy": 0.0, "hard": 0.0})
    assert [chosen["easy"].cost, chosen["hard"].cost] == [0.2, 0.5]


def test_no_kind_falls_below_its_least_where_the_budget_allows():
    options = {"a": [option(0.2, 0.2), option(0.4, 0.1)], "b": [option(0.2, 0.3), option(0.5, 0.25)]}
    sizes = {"a": 10, "b": 1}
    assert allocate(options, sizes, 0.4, {"a": 0.0, "b": 0.7})["a"].cost == 0.4
    assert allocate(options, sizes, 0.3, {"a": 0.0, "b": 0.75})["b"].cost == 0.5
    assert allocate(options, sizes, 0.2, {"a": 0.0, "b": 0.75})["b"].cost == 0.2  # the budget does not allow it


def test_what_nothing_fits_is_refused():
    with pytest.raises(ValueError, match=r"nothing that was tried costs 10\.0%"):
        allocate({"a": [option(0.2, 0.0)]}, {"a": 5}, 0.1, {"a": 0.0})
