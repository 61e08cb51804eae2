"""One budget, shared out: kinds of question that need little pay for those that need more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from foveate.calibration.search import Candidate

STEPS = 50  # of the search for the price
LEADS = (*(points / 100 for points in range(10, -11, -1)), -math.inf)  # of agreement


def allocate(
    options: Mapping[str, Sequence[Candidate]],
    sizes: Mapping[str, int],
    target: float,
    rivals: Mapping[str, Sequence[Candidate]],
) -> dict[str, Candidate]:
    """For each kind one of its options, so that the loss of all samples is small and their mean cost within the target.

    Args:
        options: per kind what can be chosen, with cost and loss on that kind's samples.
        sizes: samples of each kind: the mix that the mean is taken over.
        rivals: per kind what every choice should be more faithful than, on each task and by the largest of `LEADS`
            that the budget allows for all kinds.

    Raises:
        ValueError: even the cheapest options cost more than the target.
    """
    total = sum(sizes.values())

    def cost(chosen: Mapping[str, Candidate]) -> float:
        return sum(sizes[kind] * c.cost for kind, c in chosen.items()) / total

    def cheapest(found: Mapping[str, Sequence[Candidate]]) -> dict[str, Candidate]:
        return {kind: min(few, key=lambda c: (c.cost, c.loss)) for kind, few in found.items()}

    def ahead(lead: float) -> dict[str, list[Candidate]]:
        return {k: [c for c in few if all(leads(c, r, lead) for r in rivals[k])] for k, few in options.items()}

    usable: Mapping[str, Sequence[Candidate]] = options
    for found in map(ahead, LEADS):
        if all(found.values()) and cost(cheapest(found)) <= target:
            usable = found
            break
    best = cheapest(usable)
    if cost(best) > target:
        raise ValueError(f"nothing that was tried costs {target:.1%} of dense or less: raise the budget or --trials")
    low, high = 1e-5, 1e5  # the price of a dense prompt, in loss; at `high` the cheapest are taken
    for _ in range(STEPS):
        price = math.sqrt(low * high)
        chosen = {kind: cheapest_at(price, few) for kind, few in usable.items()}
        if cost(chosen) <= target:
            best, high = chosen, price
        else:
            low = price
    return topped_up(best, usable, sizes, target * total)


def leads(one: Candidate, rival: Candidate, lead: float) -> bool:
    """Whether one is ahead of its rival by so much agreement on every task, or changes nothing.

    On the few samples of a search, what is level may well be behind on others; a lead is what outlasts them. A lead of
    minus infinity is had by all.
    """
    return all(one.by_task[task] >= min(1.0, agreement + lead) for task, agreement in rival.by_task.items())


def cheapest_at(price: float, options: Sequence[Candidate]) -> Candidate:
    """The option with the smallest loss and cost together, a dense prompt costing `price`."""
    return min(options, key=lambda c: (c.loss + price * c.cost, c.cost))


def topped_up(
    chosen: dict[str, Candidate], options: Mapping[str, Sequence[Candidate]], sizes: Mapping[str, int], budget: float
) -> dict[str, Candidate]:
    """What is left of the budget goes where it lowers the loss most."""
    spent = sum(sizes[kind] * c.cost for kind, c in chosen.items())
    while True:
        better = [
            (sizes[kind] * (chosen[kind].loss - c.loss), kind, c)
            for kind, few in options.items()
            for c in few
            if c.loss < chosen[kind].loss and spent + sizes[kind] * (c.cost - chosen[kind].cost) <= budget
        ]
        if not better:
            return chosen
        _, kind, c = max(better, key=lambda found: found[0])
        spent += sizes[kind] * (c.cost - chosen[kind].cost)
        chosen = {**chosen, kind: c}
