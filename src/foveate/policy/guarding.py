"""The guard of every entry: its threshold, set on samples of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foveate.bench import counting
from foveate.methods import Method
from foveate.policy import bound
from foveate.policy.policy import Guard
from foveate.policy.replay import Outcome
from foveate.policy.request import Request
from foveate.policy.trials import Trials, name_of

Advance = Callable[[str, int, int], None]


def check_guard(request: Request, samples: int) -> None:
    assert request.guard is not None
    least = bound.needed(request.guard, request.confidence, request.fresh)
    if samples < least:
        raise ValueError(
            f"a bound of {request.guard:.1%} with confidence {request.confidence:.0%} takes {least} samples at the "
            f"least, and there are {samples}: raise --guarded, or the bound"
        )


def guard_of(
    searched: Trials, guarded: Trials, chosen: Mapping[str, Method], request: Request, advance: Advance
) -> dict[str, Guard | None]:
    """For each entry its guard; None where prompts are better not pruned at all."""
    assert request.guard is not None
    alpha, confidence, fresh = request.guard, request.confidence, request.fresh

    told = counting(advance, "guard", len(guarded.samples))
    row = bound.row_of_thresholds(seen_by(searched, chosen, lambda more: None))
    samples = seen_by(guarded, chosen, told)
    thresholds = bound.choose(row, samples, alpha, confidence, fresh)
    guards: dict[str, Guard | None] = {}
    for kind in chosen:
        threshold = thresholds.get(kind, bound.ALWAYS)
        again = [one.signal < threshold for one in samples if one.kind == kind]
        rerun = sum(again) / max(1, len(again))
        guard = Guard("margin", threshold, alpha, confidence, len(samples), rerun, fresh)
        guards[kind] = None if threshold >= bound.ALWAYS else guard
    return guards


def seen_by(trials: Trials, chosen: Mapping[str, Method], advance: Callable[[int], None]) -> list[bound.Seen]:
    """What the guard has to know of every prompt, each pruned by the method chosen for its kind."""
    outcomes = trials.run_all(lambda kind: [None, chosen[kind]], advance)
    dense = outcomes[name_of(None)]
    found = [(sample, trials.kind(sample)) for sample in trials.samples]
    return [seen(kind, outcomes[name_of(chosen[kind])][s.name], dense[s.name]) for s, kind in found]


def seen(kind: str, outcome: Outcome, dense: Outcome) -> bound.Seen:
    return bound.Seen(kind, outcome.margin, not outcome.same, outcome.flops, outcome.again, dense.flops)
