"""The job behind `foveate calibrate`: a budget and samples in, a policy and all that led to it out. Prints nothing.

A run lives in a folder: every outcome is in its journals, and a run that was killed goes on there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from foveate import flow
from foveate.bench import counting, fingerprint, spread
from foveate.methods import Method, Uniform
from foveate.policy.adaptive import adaptive_of
from foveate.policy.allocate import allocate
from foveate.policy.data import Sets
from foveate.policy.figures import measured, published, some, timed
from foveate.policy.guarding import check_guard, guard_of
from foveate.policy.kinds import DEFAULT, KINDS, common, kind_of
from foveate.policy.policy import Entry, Figure, Guard, Measured, Model, Policy
from foveate.policy.request import Request
from foveate.policy.schedule import Dense
from foveate.policy.search import CHANCE, Budget, Candidate, Search, candidate_of, vtw_layer
from foveate.policy.trials import Outcomes, Trials, name_of, share
from foveate.suite.journal import Journal
from foveate.suite.tasks import Sample

Advance = Callable[[str, int, int], None]
FEWEST = 12  # samples of a kind that get an entry of their own
FINE = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)  # where the cheapest is wanted
FINALISTS = 5  # candidates that are measured on all samples
AGAIN = 6  # shapes that another budget or kind starts from


@dataclass(frozen=True)
class Point:
    """A method as the report shows it. `chosen` marks the policy's own entries."""

    name: str
    method: Method
    measured: Measured
    chosen: bool = False


@dataclass(frozen=True)
class Report:
    """All that a calibration found out.

    Attributes:
        points: the chosen entries, the front, the published defaults and VTW's own choice, on quoted samples.
        by_kind: for each kind the chosen entry, and the published defaults, on that kind's quoted samples.
        candidates: all that was tried, on searched samples.
        withdrawal: VTW's curve, and the layer its own search chooses.
        target: the budget in exact FLOPs or visual tokens.
    """

    request: Request
    policy: Policy
    points: list[Point]
    by_kind: dict[str, list[Point]]
    candidates: list[Candidate]
    withdrawal: tuple[int | None, list[float]]
    target: Budget
    quoted: Mapping[str, Outcomes]  # by the name of the method


def calibrate(
    model: Any,
    processor: Any,
    request: Request,
    sets: Sets,
    place: Path,
    advance: Advance,
    also: Callable[[Search], Mapping[str, Method]] = lambda search: {},
) -> Report:
    """Find a policy in the folder `place`, or go on with what is there.

    also: further methods to quote figures of, once the search is done, by their names.

    Raises ValueError for a budget or a constraint that cannot be met and for too few samples, ImportError without
    Optuna, NotImplementedError for a model that cannot be pruned or has no cost model.
    """
    if not sets.searched or not sets.quoted:
        raise ValueError("there is nothing to calibrate on: give --limit and --quoted of at least 1")
    if request.guard is not None:
        check_guard(request, len(sets.guarded))
    kinds = common([sample.question for sample in sets.searched], FEWEST) if request.by_kind else []

    def kind(sample: Sample) -> str:
        return kind_of(sample.question, kinds)

    def trials_of(name: str, samples: Sequence[Sample]) -> Trials:
        journal = Journal(place / f"{name}.jsonl", plan_of(model, request, samples))
        return Trials(model, processor, samples, journal, request.batch, kind)

    searched = trials_of("searched", sets.searched)
    quick = searched.first(1)
    budget = budget_of(model, request, quick)
    open_end = request.constrained and budget.target == 1.0  # a constraint alone: search in the middle
    search, withdrawal = search_all(quick, replace(budget, target=0.5) if open_end else budget, request, advance)
    front = front_of(quick, search, request, advance)
    entries = entries_of(searched, quick, search, budget, kinds, request, advance)
    chosen = {k: candidate.method for k, candidate in entries.items()}

    quoted = trials_of("quoted", sets.quoted)
    compared = {"one for all": chosen[DEFAULT], **front, **published(search.layers, withdrawal[0]), **also(search)}
    told = counting(advance, "quoted figures", len(sets.quoted))
    outcomes = quoted.run_all(lambda k: [None, chosen[k], *compared.values()], told)
    speeds = timed(quoted, list(compared.values()), advance)
    points = points_of(quoted, outcomes, chosen, compared, speeds)
    by_kind = {
        k: kind_points(quoted.of(k), outcomes, chosen[k], published(search.layers, None), speeds)
        for k in entries
        if quoted.of(k).samples
    }
    guards: dict[str, Guard | None] = {}
    if request.guard is not None:
        guards = guard_of(searched, trials_of("guarded", sets.guarded), chosen, request, advance)
    data = {"source": request.data, "seed": request.seed, "searched": len(sets.searched), "quoted": len(sets.quoted)}
    told_of = data | ({} if request.guard is None else {"guarded": len(sets.guarded)})
    made = {
        k: Entry(
            method=Dense() if guards.get(k, 0) is None else chosen[k],
            rule=KINDS.get(k),
            budget=request.budget,
            data=told_of,
            measured=by_kind[k][0].measured if k in by_kind else points[0].measured,
            guard=guards.get(k),
        )
        for k in (*kinds, DEFAULT)
    }
    policy = Policy(Model.of(model, request.model), made)
    return Report(request, policy, points, by_kind, list(search.found.values()), withdrawal, budget, outcomes)


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
    least: dict[str, float] = {}
    for k in kinds:
        own, few = of_kind(quick.of(k), search, request), searched.of(k)
        options[k] = finals(own, budget.target, request, few, budget.kind)
        if not request.constrained:
            defaults = published_on(few, search.layers, budget.kind)
            least[k] = max(c.agreement for c in defaults)
            dense = candidate_of("dense", Dense(), None, few.run(None), few.run(None), budget.kind)
            options[k] += [*elsewhere(own, budget.target, few, budget.kind), *defaults, dense]
        told(1)
    return {**share_out(options, least, searched, best, budget, request), DEFAULT: best}


def points_of(
    quoted: Trials,
    outcomes: Mapping[str, Outcomes],
    chosen: Mapping[str, Method],
    compared: Mapping[str, Method],
    speeds: Mapping[str, Figure],
) -> list[Point]:
    """The policy as a whole, each question under its kind's entry, and what it is compared with."""
    dense = outcomes[name_of(None)]
    points = [
        Point(name, method, measured(outcomes[name_of(method)], dense, speeds.get(name_of(method))))
        for name, method in compared.items()
    ]
    if len(chosen) == 1:
        return [replace(points[0], chosen=True), *points[1:]]
    mixed = {s.name: outcomes[name_of(chosen[quoted.kind(s)])][s.name] for s in quoted.samples}
    return [Point("by kind", chosen[DEFAULT], measured(mixed, dense), True), *points]


def kind_points(
    quoted: Trials,
    outcomes: Mapping[str, Outcomes],
    method: Method,
    defaults: Mapping[str, Method],
    speeds: Mapping[str, Figure],
) -> list[Point]:
    """A kind's entry and the published defaults, on that kind's quoted samples."""
    names = [sample.name for sample in quoted.samples]
    dense = some(outcomes[name_of(None)], names)
    return [
        Point(name, m, measured(some(outcomes[name_of(m)], names), dense, speeds.get(name_of(m))))
        for name, m in {"chosen": method, **defaults}.items()
    ]


def plan_of(model: Any, request: Request, samples: Sequence[Sample]) -> dict[str, Any]:
    """What decides the outcomes of trials. The budget does not: another one goes on with the same journals."""
    asked = [(sample.name, sample.question) for sample in samples]
    return {
        "weights": fingerprint(model),
        "data": request.data,
        "seed": request.seed,
        "questions": zlib.crc32(repr(asked).encode()),
        "batch": request.batch,
        "by_kind": request.by_kind,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config.get_text_config()._attn_implementation,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def budget_of(model: Any, request: Request, trials: Trials) -> Budget:
    """The budget as exact FLOPs or visual tokens. A speedup becomes FLOPs by timing a few shares, here and now."""
    if request.kind != "speedup":
        return Budget({"flops": "flops", "keep": "visual"}[request.kind], request.target)
    probes = [Uniform(1, keep) for keep in (0.0, 0.33, 0.66)]
    speeds = timed(trials, probes, lambda *_: None)
    flops = [share(trials.run(probe), trials.run(None)) for probe in probes] + [1.0]
    times = [1 / speeds[name_of(probe)].mean for probe in probes] + [1.0]
    slope, offset = np.polyfit(flops, times, 1)
    target = (1 / request.target - offset) / slope
    if not min(flops) <= target <= 1:
        raise ValueError(
            f"a speedup of {request.target:g} is out of reach: with no image tokens after layer 0 this model reads its "
            f"prompts {1 / times[0]:.2f} times as fast"
        )
    return Budget("flops", float(target))


def search_all(trials: Trials, budget: Budget, request: Request, advance: Advance) -> tuple[Search, tuple]:
    """Every family under the budget, and VTW's own criterion."""
    counts = {"fastv": 0, "vtw": 0, "schedule": request.trials, "himap": request.trials // 2}
    layers = trials.model.config.get_text_config().num_hidden_layers
    total = sum(counts.get(f, request.trials // 3) or layers - 1 for f in request.families)
    told = counting(advance, "search", total)
    search = Search(trials, budget, request.seed, lambda: told(1))
    for family in request.families:
        known = []
        if family == "himap":
            known = [{"layer1": a, "later": b, "power": c} for a in (1, 2) for b in (2, 4) for c in (2.0, 1.0)]
        elif family == "schedule":
            starts = [shape for c in search.fitting if (shape := as_schedule(c, layers)) is not None][:AGAIN]
            known = [shape | {"leave": leave} for shape in starts for leave in (layers, layers // 2)]
        known = known[: counts.get(family, 0) // 2]
        search.family(family, counts.get(family, request.trials // 3), known)
    withdrawal = vtw_layer(trials.model, flow_batches(trials), request.eta)
    for adaptive in adaptive_of(search):
        search.note("adaptive", adaptive, None, trials.run(adaptive))
    return search, withdrawal


def flow_batches(trials: Trials, most: int = 20) -> Iterable[flow.Batch]:
    """A few of the prompts, one by one: as many as VTW's authors took."""
    for sample in spread(trials.samples, most):
        item = trials.item(sample)
        yield flow.Batch(item.inputs, [[0]], [sample.task]).to(trials.model.device)


def as_schedule(candidate: Candidate, last: int) -> dict[str, Any] | None:
    """A FastV or HiMAP that was tried, as the shape of a free schedule to begin with. last: a layer beyond all."""
    shape = candidate.shape
    if candidate.family == "fastv" and shape:
        return {"stages": 1, "layer0": shape["layer"], "score0": "last", "power0": 1.0, "leave": last}
    if candidate.family == "himap" and shape:
        first = {"layer0": shape["layer1"], "score0": "instruction", "power0": 1.0}
        return {
            "stages": 2,
            **first,
            "layer1": shape["later"],
            "score1": "visual",
            "power1": shape["power"],
            "leave": last,
        }
    return None


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
    least: Mapping[str, float],
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
    return allocate(options, sizes, left, least)


def front_of(trials: Trials, search: Search, request: Request, advance: Advance) -> dict[str, Method]:
    """The best method at other budgets, from the shapes that did best at this one."""
    found = {}
    shapes = [c for c in search.fitting if c.shape is not None and c.family != "visipruner"][:AGAIN]
    wanted = FINE if request.constrained else request.front
    budgets = [b for b in wanted if abs(b - search.budget.target) > 0.02]
    told = counting(advance, "the front", len(budgets) * len(shapes))
    for target in budgets:
        other = Search(trials, Budget(search.budget.kind, target), request.seed, lambda: None)
        for candidate in shapes:
            assert candidate.shape is not None
            other.fixed(candidate.family, candidate.shape)
            told(1)
        if other.fitting:
            found[f"at {target:.0%}"] = other.fitting[0].method
        search.found.update(other.found)
    return found
