"""Who gets what: the entry for all prompts, one for each kind of question, and the guard of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from foveate.bench import counting
from foveate.calibration import bound
from foveate.calibration.allocate import allocate
from foveate.calibration.data import DEFAULT
from foveate.calibration.figures import published, some
from foveate.calibration.replay import Outcome
from foveate.calibration.request import Request
from foveate.calibration.search import AGAIN, CHANCE, Budget, Candidate, Search, candidate_of
from foveate.calibration.trials import Trials, name_of
from foveate.methods import Method
from foveate.policy.entry import Guard
from foveate.policy.schedule import Dense

Advance = Callable[[str, int, int], None]
FINALISTS = 5  # candidates that are measured on all samples


def entries_of(
    searched: Trials,
    quick: Trials,
    search: Search,
    budget: Budget,
    kinds: Sequence[str],
    request: Request,
    advance: Advance,
) -> dict[str, Candidate]:
    """The entry for all prompts, and one for each kind of question; finalists are measured on all samples."""
    told = counting(advance, "finals", 1 + len(kinds))
    best = pick(finals(search.found.values(), budget.target, request, searched, budget.kind), request)
    told(1)
    options: dict[str, list[Candidate]] = {}
    rivals: dict[str, list[Candidate]] = {}
    for k in kinds:
        own, few = of_kind(quick.of(k), search, request), searched.of(k)
        options[k] = finals(own, budget.target, request, few, budget.kind)
        if not request.constrained:
            rivals[k] = published_on(few, search.layers, budget.kind)
            dense = candidate_of("dense", Dense(), None, few.run(None), few.run(None), budget.kind)
            options[k] += [*elsewhere(own, budget.target, few, budget.kind), *rivals[k], dense]
        told(1)
    return {**share_out(options, rivals, searched, best, budget, request), DEFAULT: best}


def finals(found: Iterable[Candidate], limit: float, request: Request, trials: Trials, kind: str) -> list[Candidate]:
    """What did best on the first samples and fits the budget, measured anew on all of them."""
    fitting = [c for c in found if c.cost <= limit * CHANCE]
    if not fitting:
        raise ValueError(f"nothing that was tried costs {limit:.1%} of dense or less: raise the budget or --trials")
    best = sorted(fitting, key=lambda c: (0, c.cost) if request.constrained and request.meets(c) else (1, c.loss))
    dense = trials.run(None)
    return [candidate_of(c.family, c.method, c.shape, trials.run(c.method), dense, kind) for c in best[:FINALISTS]]


def pick(fitting: Sequence[Candidate], request: Request) -> Candidate:
    """The most faithful; with a constraint the cheapest that fulfils it. ValueError if none does."""
    if not request.constrained:
        return min(fitting, key=lambda c: c.loss)
    meets = [c for c in fitting if request.meets(c)]
    if not meets:
        raise ValueError(
            f"within the budget the best agreement is {max(c.agreement for c in fitting):.1%} and the smallest KL "
            f"{min(c.kl for c in fitting):.3g}: raise the budget, or ask for less"
        )
    return min(meets, key=lambda c: c.cost)


def of_kind(trials: Trials, search: Search, request: Request) -> list[Candidate]:
    """What was tried, measured on one kind of question alone, and a search of its own that begins with the best."""
    own = Search(trials, search.budget, request.seed, lambda: None)
    names, dense = [sample.name for sample in trials.samples], trials.run(None)
    for c in search.found.values():
        outcomes = some(search.trials.run(c.method), names)
        own.found[repr(c.method)] = candidate_of(c.family, c.method, c.shape, outcomes, dense, search.budget.kind)
    shapes = [c.shape for c in own.fitting if c.family == "schedule" and c.shape is not None][: AGAIN // 2]
    if "schedule" in request.families:
        own.family("schedule", len(shapes) + request.trials // 4, shapes)
    return list(own.found.values())


def elsewhere(found: Sequence[Candidate], target: float, trials: Trials, kind: str) -> list[Candidate]:
    """The best at other costs than the budget's, measured on all samples: what shares of the budget are dealt from."""
    chosen, dense, low = [], trials.run(None), 0.0
    for high in (0.27, 0.52, 0.72):
        bin_ = sorted((c for c in found if low < c.cost <= high and abs(c.cost - target) > 0.02), key=lambda c: c.loss)
        chosen += bin_[: FINALISTS // 2]
        low = high
    return [candidate_of(c.family, c.method, c.shape, trials.run(c.method), dense, kind) for c in chosen]


def published_on(trials: Trials, layers: int, kind: str) -> list[Candidate]:
    """The published defaults on some samples."""
    dense = trials.run(None)
    methods = published(layers, None).values()
    return [candidate_of(m.name, m, None, trials.run(m), dense, kind) for m in methods]


def share_out(
    options: Mapping[str, list[Candidate]],
    rivals: Mapping[str, Sequence[Candidate]],
    trials: Trials,
    best: Candidate,
    budget: Budget,
    request: Request,
) -> dict[str, Candidate]:
    """Each kind's entry. Their mean cost is the budget's; under a constraint each kind fulfils it by itself."""
    if request.constrained:
        return {kind: pick(found, request) for kind, found in options.items()}
    if not options:
        return {}
    sizes = {kind: len(trials.of(kind).samples) for kind in options}
    rest = len(trials.samples) - sum(sizes.values())
    left = (budget.target * len(trials.samples) - best.cost * rest) / sum(sizes.values())  # for all but the default's
    return allocate(options, sizes, left, rivals)


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
