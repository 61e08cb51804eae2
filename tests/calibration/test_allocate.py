"""A budget is shared out among kinds so that their mean cost is within it and the loss small."""

from itertools import product

import numpy as np
import pytest

import foveate
from foveate.calibration.allocate import allocate
from foveate.calibration.search import Candidate


def option(cost: float, loss: float, **by_task: float) -> Candidate:
    return Candidate("x", foveate.VTW(1), None, loss, cost, 1 - loss, loss, by_task or {"t": 1 - loss})


def rival(agreement: float) -> list[Candidate]:
    return [option(1.0, 1 - agreement)]


def mean(chosen, sizes, what):
    return sum(sizes[k] * getattr(c, what) for k, c in chosen.items()) / sum(sizes.values())


@pytest.mark.parametrize("seed", range(20))
def test_it_is_nearly_as_good_as_trying_everything(seed):
    rng = np.random.default_rng(seed)
    sizes = {"a": 10, "b": 30, "c": 20}
    options = {k: [option(1.0, 0.0)] + [option(*rng.uniform(0.1, 1.0, 2)) for _ in range(6)] for k in sizes}
    chosen = allocate(options, sizes, 0.5, {k: [] for k in sizes})
    everything = (dict(zip(sizes, few, strict=True)) for few in product(*options.values()))
    best = min(mean(one, sizes, "loss") for one in everything if mean(one, sizes, "cost") <= 0.5)
    assert mean(chosen, sizes, "cost") <= 0.5 + 1e-9
    assert mean(chosen, sizes, "loss") <= best + 0.06


def test_kinds_that_need_little_pay_for_those_that_need_more():
    options = {"easy": [option(0.2, 0.0), option(0.35, 0.0)], "hard": [option(0.35, 0.5), option(0.5, 0.1)]}
    chosen = allocate(options, {"easy": 10, "hard": 10}, 0.35, {"easy": [], "hard": []})
    assert [chosen["easy"].cost, chosen["hard"].cost] == [0.2, 0.5]


def test_no_kind_falls_below_its_least_where_the_budget_allows():
    options = {"a": [option(0.2, 0.2), option(0.4, 0.1)], "b": [option(0.2, 0.3), option(0.5, 0.25)]}
    sizes = {"a": 10, "b": 1}
    assert allocate(options, sizes, 0.39, {"a": [], "b": rival(0.75)})["b"].cost == 0.5
    assert allocate(options, sizes, 0.39, {"a": [], "b": []})["b"].cost == 0.2  # a's need is greater
    assert allocate(options, sizes, 0.2, {"a": [], "b": rival(0.75)})["b"].cost == 0.2  # the budget does not allow it


def test_a_lead_over_every_rival_comes_before_the_mean():
    level, ahead, best = option(0.2, 0.2), option(0.3, 0.16), option(0.9, 0.1)
    options = {"narrow": [level, ahead, best], "wide": [option(0.2, 0.4), option(0.4, 0.1)]}
    sizes = {"narrow": 10, "wide": 10}
    assert allocate(options, sizes, 0.3, {"narrow": rival(0.8), "wide": rival(0.2)})["narrow"] is ahead
    assert allocate(options, sizes, 0.3, {"narrow": [], "wide": []})["narrow"] is level


def test_no_task_of_a_kind_pays_for_another_where_the_budget_allows():
    mixed, even, dear = option(0.2, 0.1, x=1.0, y=0.8), option(0.3, 0.15, x=0.9, y=0.9), option(0.9, 0.0, x=1.0, y=1.0)
    rivals = {"a": [option(0.6, 0.2, x=0.8, y=0.85), option(0.5, 0.2, x=0.9, y=0.6)]}
    assert allocate({"a": [mixed, even, dear]}, {"a": 5}, 0.4, rivals)["a"] is even
    assert allocate({"a": [mixed, even, dear]}, {"a": 5}, 0.25, rivals)["a"] is mixed  # nothing better is affordable
    assert allocate({"a": [mixed, even, dear]}, {"a": 5}, 0.4, {"a": [option(0.6, 0.1, x=0.95, y=0.5)]})["a"] is mixed


def test_what_nothing_fits_is_refused():
    with pytest.raises(ValueError, match=r"nothing that was tried costs 10\.0%"):
        allocate({"a": [option(0.2, 0.0)]}, {"a": 5}, 0.1, {"a": []})
