"""What is quoted of a method: cost and fidelity with their intervals, and its time on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any

import numpy as np

import foveate
from foveate.bench import counting, spread
from foveate.calibration.replay import Outcome
from foveate.calibration.trials import Outcomes, Trials, name_of
from foveate.measure import Clock, generate
from foveate.methods import METHODS, Method
from foveate.policy.entry import Figure, Measured
from foveate.suite import statistics
from foveate.suite.dial import scale_layers
from foveate.suite.runner import Item
from foveate.suite.timing import on_device

Advance = Callable[[str, int, int], None]
PUBLISHED = ("fastv", "himap", "vtw", "visipruner")
TIMED = 3  # prompts, each in as many rounds


def published(layers: int, own: int | None) -> dict[str, Method]:
    """The published defaults, their layers in proportion to the depth, and VTW at the layer of its own search."""
    found = {f"{name}, published": scale_layers(METHODS[name](), (), layers) for name in PUBLISHED}
    if own is not None and 0 < own < layers:
        found["vtw, its own K"] = METHODS["vtw"](layer=own)  # pyright: ignore[reportCallIssue]
    return found


def timed(trials: Trials, methods: Sequence[Method], advance: Advance) -> dict[str, Figure]:
    """Dense time to the first token over pruned: the median over prompts and rounds, and the middle 80 % of them."""
    items = [trials.item(sample) for sample in spread(trials.samples, TIMED)]
    told = counting(advance, "times", TIMED * len(items))
    ratios: dict[str, list[float]] = {name_of(method): [] for method in methods}
    for _ in range(TIMED):
        for item in items:
            dense = first_token(trials.model, item, None)
            for method in dict.fromkeys(methods):
                ratios[name_of(method)].append(dense / first_token(trials.model, item, method))
            told(1)
    return {
        name: Figure(median(found), sorted(found)[len(found) // 10], sorted(found)[-1 - len(found) // 10])
        for name, found in ratios.items()
    }


def together(speeds: Sequence[Figure], weights: Sequence[int]) -> Figure:
    """The speed of several kinds of prompt that are mixed so: times are what is averaged."""

    def mean(values: Iterable[float]) -> float:
        return sum(weights) / sum(weight / value for weight, value in zip(weights, values, strict=True))

    return Figure(mean(s.mean for s in speeds), mean(s.low for s in speeds), mean(s.high for s in speeds))


def first_token(model: Any, item: Item, method: Method | None) -> float:
    """Seconds to the first token: vision tower, prompt, and what pruning itself costs."""
    inputs = on_device(model, item)
    with nullcontext() if method is None else foveate.prune(model, method):
        clock = Clock(model.device)
        generate(model, inputs, 1, stopping_criteria=[clock])
        return clock.seconds()[0]


def measured(outcomes: Outcomes, dense: Outcomes, speed: Figure | None = None) -> Measured:
    """Means over samples with bootstrap intervals."""
    names = list(outcomes)
    (drawn,) = statistics.resamples([len(names)])

    def figure(value: Callable[[Outcome, Outcome], float]) -> Figure:
        values = np.array([value(outcomes[name], dense[name]) for name in names], dtype=float)
        return Figure(statistics.mean(values), *statistics.interval(statistics.means(values, drawn)))

    return Measured(
        samples=len(names),
        flops=figure(lambda o, d: o.flops / d.flops),
        whole=figure(lambda o, d: o.whole / d.whole),
        agreement=figure(lambda o, d: float(o.same)),
        kl=figure(lambda o, d: o.kl),
        speed=speed,
    )


def some(outcomes: Outcomes, names: Iterable[str]) -> dict[str, Outcome]:
    return {name: outcomes[name] for name in names if name in outcomes}
