"""One budget, shared out: kinds of question that need little pay for those that need more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from foveate.calibration.search import Candidate

STEPS = 50  # of the search for the price


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
        rivals: per kind what no choice should be less faithful than: on any task, if the budget allows that for all
            kinds, else on the kind as a whole, else not at all.

    Raises:
        ValueError: even the cheapest options cost more than the target.
    """
    total = sum(sizes.values())

    def cost(chosen: Mapping[str, Candidate]) -> float:
        return sum(sizes[kind] * c.cost for kind, c in chosen.items()) / total

    def cheapest(found: Mapping[str, Sequence[Candidate]]) -> dict[str, Candidate]:
        return {kind: min(few, key=lambda c: (c.cost, c.loss)) for kind, few in found.items()}

    def level(beaten: Callable[[Candidate, Candidate], bool]) -> dict[str, list[Candidate]]:
        return {kind: [c for c in few if all(beaten(c, r) for r in rivals[kind])] for kind, few in options.items()}

    usable: Mapping[str, Sequence[Candidate]] = options
    for found in (level(on_every_task), level(lambda c, rival: c.agreement >= rival.agreement)):
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


def on_every_task(one: Candidate, rival: Candidate) -> bool:
    """Whether one is at least as faithful as its rival on every task."""
    return all(one.by_task[task] >= agreement for task, agreement in rival.by_task.items())


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
