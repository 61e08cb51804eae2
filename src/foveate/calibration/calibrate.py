"""The job behind `foveate calibrate`: a budget and samples in, a policy and all that led to it out. Prints nothing.

A run lives in a folder: every outcome is in its journals, and a run that was killed goes on there.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from foveate import flow
from foveate.bench import counting, fingerprint, spread
from foveate.calibration.data import DEFAULT, KINDS, Sets, common, kind_of
from foveate.calibration.entries import check_guard, entries_of, guard_of
from foveate.calibration.figures import measured, published, some, timed, together
from foveate.calibration.request import Request
from foveate.calibration.search import AGAIN, Budget, Candidate, Search, as_schedule, vtw_layer
from foveate.calibration.shares import adaptive_of
from foveate.calibration.trials import Outcomes, Trials, name_of, share
from foveate.methods import Method, Uniform
from foveate.policy.entry import Entry, Figure, Guard, Measured
from foveate.policy.policy import Model, Policy
from foveate.policy.schedule import Dense
from foveate.suite.journal import Journal
from foveate.suite.tasks import Sample

Advance = Callable[[str, int, int], None]
FEWEST = 12  # samples of a kind that get an entry of their own
FINE = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)  # where the cheapest is wanted


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
    speeds = timed(quoted, [*compared.values(), *chosen.values()], advance)
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
    asked = Counter(map(quoted.kind, quoted.samples))
    speed = together([speeds[name_of(chosen[k])] for k in asked], list(asked.values()))
    return [Point("by kind", chosen[DEFAULT], measured(mixed, dense, speed), True), *points]


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
            starts = [shape for c in search.fitting if (shape := as_schedule(c)) is not None][:AGAIN]
            known = [shape | {"leave": leave} for shape in starts for leave in (layers * 2 // 3, layers // 2)]
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
