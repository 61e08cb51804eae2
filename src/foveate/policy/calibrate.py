"""The job behind `foveate calibrate`: a budget and samples in, a policy and all that led to it out. Prints nothing.

A run lives in a folder: every outcome is in its journals, and a run that was killed goes on there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

import foveate
from foveate import flow
from foveate.bench import counting, fingerprint, spread
from foveate.flow.withdrawal import ETA
from foveate.measure import Clock, generate
from foveate.methods import METHODS, Method, Share, Uniform
from foveate.policy import bound
from foveate.policy.data import Sets
from foveate.policy.kinds import DEFAULT, KINDS, kind_of
from foveate.policy.policy import Entry, Figure, Guard, Measured, Model, Policy
from foveate.policy.replay import Outcome
from foveate.policy.schedule import Dense, Schedule
from foveate.policy.search import CHANCE, FAMILIES, Budget, Candidate, Search, candidate_of, vtw_layer
from foveate.policy.trials import Outcomes, Trials, name_of, share, solve
from foveate.suite import statistics
from foveate.suite.dial import scale_layers
from foveate.suite.journal import Journal
from foveate.suite.runner import Item
from foveate.suite.tasks import Sample
from foveate.suite.timing import on_device

Advance = Callable[[str, int, int], None]
PUBLISHED = ("fastv", "himap", "vtw", "visipruner")
FEWEST = 12  # samples of a kind that get an entry of their own
FRONT = (0.25, 0.5, 0.7)  # budgets beside the one asked for, for the picture
FINE = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)  # where the cheapest is wanted
AGAIN = 8  # shapes that another budget or kind starts from
TIMED = 3  # prompts, each in as many rounds


@dataclass(frozen=True)
class Request:
    """What a calibration is asked to do.

    Attributes:
        kind, target: of the budget, see `search.Budget`; the kind "speedup" is a dense time over a pruned one.
        max_kl, agreement: constraints on fidelity, or None.
        trials: that Optuna draws for a free schedule; half as many for the other families.
        eta: VTW's own threshold, nats.
        guard: alpha, or None. confidence, fresh: of the bound, see `policy.Guard`.
        by_kind: whether kinds of question get entries of their own.
    """

    model: str
    kind: str
    target: float
    max_kl: float | None = None
    agreement: float | None = None
    families: tuple[str, ...] = FAMILIES
    trials: int = 32
    eta: float = ETA
    guard: float | None = None
    confidence: float = 0.95
    fresh: int | None = None
    by_kind: bool = True
    front: tuple[float, ...] = FRONT
    batch: int = 16
    seed: int = 0
    data: str = "suite"

    @property
    def constrained(self) -> bool:
        return self.max_kl is not None or self.agreement is not None


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


def one_budget(flops: float | None, speedup: float | None, keep: float | None, constrained: bool) -> tuple[str, float]:
    """The kind and the target of the one budget that was given; with a constraint it may be left out.

    Raises ValueError for none, for several, and for a share that is none.
    """
    given = {
        name: value for name, value in (("flops", flops), ("speedup", speedup), ("keep", keep)) if value is not None
    }
    if not given and constrained:
        return "flops", 1.0
    if len(given) != 1:
        raise ValueError("give one budget: --flops 0.35, --speedup 2 or --keep 0.2; or a constraint, --agreement 0.99")
    ((kind, target),) = given.items()
    if kind == "speedup" and not 1 < target < 1000:
        raise ValueError(f"--speedup {target:g} is no speedup: give more than 1")
    if kind != "speedup" and not 0 < target <= 1:
        raise ValueError(f"--{kind} {target:g} is no share of the dense model's: give more than 0 and at most 1")
    return kind, target


def families_of(names: Sequence[str]) -> tuple[str, ...]:
    """The families to search, cheap ones first: a free schedule begins with what they found."""
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ValueError(f"there is no method {unknown[0]!r} to calibrate; there are {', '.join(FAMILIES)}")
    if not names:
        raise ValueError(f"give --methods, some of {', '.join(FAMILIES)}")
    return tuple(family for family in FAMILIES if family in names)


def check(request: Request) -> None:
    """Refuse constraints and bounds that are none, before anything is loaded."""
    for name, value, most in (
        ("--agreement", request.agreement, 1.0),
        ("--guard", request.guard, 0.5),
        ("--confidence", request.confidence, 1.0),
        ("--max-kl", request.max_kl, np.inf),
        ("--eta", request.eta, np.inf),
    ):
        if value is not None and not (0 < value <= most and value < np.inf):
            raise ValueError(
                f"{name} {value:g} is out of range: give more than 0" + f" and at most {most:g}" * (most < np.inf)
            )
    if request.confidence == 1:
        raise ValueError("--confidence 1 is certainty, which no number of samples gives: give less")


def kind_of_sample(by_kind: bool) -> Callable[[Sample], str]:
    return (lambda sample: kind_of(sample.question)) if by_kind else (lambda sample: DEFAULT)


def calibrate(model: Any, processor: Any, request: Request, sets: Sets, place: Path, advance: Advance) -> Report:
    """Find a policy in the folder `place`, or go on with what is there.

    Raises ValueError for a budget or a constraint that cannot be met and for too few samples, ImportError without
    Optuna, NotImplementedError for a model that cannot be pruned or has no cost model.
    """
    if not sets.searched or not sets.quoted:
        raise ValueError("there is nothing to calibrate on: give --limit and --quoted of at least 1")
    if request.guard is not None:
        check_guard(request, len(sets.guarded))
    kind = kind_of_sample(request.by_kind)

    def trials_of(name: str, samples: Sequence[Sample]) -> Trials:
        journal = Journal(place / f"{name}.jsonl", plan_of(model, request, samples))
        return Trials(model, processor, samples, journal, request.batch, kind)

    searched = trials_of("searched", sets.searched)
    budget = budget_of(model, request, searched)
    open_end = request.constrained and budget.target == 1.0  # a constraint alone: search in the middle
    search, withdrawal = search_all(searched, replace(budget, target=0.5) if open_end else budget, request, advance)
    front = front_of(searched, search, request, advance)
    best = pick(search.found.values(), budget.target, request)
    by_kind_found = kinds_of(searched, search, budget.target, request, advance) if request.by_kind else {}
    entries = {DEFAULT: best, **by_kind_found}

    quoted = trials_of("quoted", sets.quoted)
    others = {**front, **published(search.layers, withdrawal[0])}
    chosen = {kind: candidate.method for kind, candidate in entries.items()}
    told = counting(advance, "quoted figures", len(sets.quoted))
    outcomes = quoted.run_all(lambda k: [None, chosen.get(k, best.method), best.method, *others.values()], told)
    dense = outcomes[name_of(None)]
    speeds = timed(quoted, [best.method, *others.values()], place, advance)
    points = [
        Point(name, method, measured(outcomes[name_of(method)], dense, speeds.get(name_of(method))), name == "chosen")
        for name, method in {"chosen": best.method, **others}.items()
    ]
    by_kind = {}
    for k in [*(kind for kind in KINDS if kind in chosen), DEFAULT]:
        names = [s.name for s in sets.quoted if kind(s) == k or (kind(s) not in chosen and k == DEFAULT)]
        if names:
            compared = {"chosen": chosen.get(k, best.method), **published(search.layers, None)}
            by_kind[k] = [
                Point(name, method, measured(some(outcomes[name_of(method)], names), some(dense, names)))
                for name, method in compared.items()
            ]
    data = {"source": request.data, "seed": request.seed, "searched": len(sets.searched), "quoted": len(sets.quoted)}
    guards: dict[str, Guard | None] = {}
    if request.guard is not None:
        guards = guard_of(searched, trials_of("guarded", sets.guarded), chosen, request, advance)
        data["guarded"] = len(sets.guarded)
    budget_note = {request.kind: request.target} | {
        name: value for name in ("max_kl", "agreement") if (value := getattr(request, name)) is not None
    }
    made = {
        k: Entry(
            method=Dense() if guards.get(k, 0) is None else chosen[k],
            rule=KINDS.get(k),
            budget=budget_note,
            data=data,
            measured=by_kind[k][0].measured if k in by_kind else points[0].measured,
            guard=guards.get(k),
        )
        for k in [*(kind for kind in KINDS if kind in chosen), DEFAULT]
    }
    policy = Policy(Model.of(model, request.model), made)
    return Report(request, policy, points, by_kind, list(search.found.values()), withdrawal, budget, outcomes)


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


def check_guard(request: Request, samples: int) -> None:
    assert request.guard is not None
    least = bound.needed(request.guard, request.confidence, request.fresh)
    if samples < least:
        raise ValueError(
            f"a bound of {request.guard:.1%} with confidence {request.confidence:.0%} takes {least} samples at the "
            f"least, and there are {samples}: raise --guarded, or the bound"
        )


def budget_of(model: Any, request: Request, trials: Trials) -> Budget:
    """The budget as exact FLOPs or visual tokens. A speedup becomes FLOPs by timing a few shares, here and now."""
    if request.kind != "speedup":
        return Budget({"flops": "flops", "keep": "visual"}[request.kind], request.target)
    probes = [Uniform(1, keep) for keep in (0.0, 0.33, 0.66)]
    speeds = timed(trials, probes, trials.journal.path.parent, lambda *_: None)
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
        if family == "schedule":
            known = [shape for c in search.fitting if (shape := as_schedule(c, layers)) is not None][:AGAIN]
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


def adaptive_of(search: Search) -> list[Method]:
    """The best fixed method with shares of the score in place of its fractions, at the same average cost."""
    for candidate in search.fitting[:3]:
        try:
            return [with_shares(candidate.method, candidate.cost, search)]
        except ValueError:
            continue
    return []


def with_shares(method: Method, target: float, search: Search) -> Method:
    """A method whose every fraction becomes the share p of the score, p such that the average cost is at most `target`.

    The average is that of the search's samples. Raises ValueError for a method without fractions, or where no p fits.
    """
    if not fractions_of(method):
        raise ValueError(f"{method.name} keeps no fraction of the tokens")
    dense = search.trials.run(None)
    return solve(
        lambda p: shared(method, max(1e-4, round(p, 4))),
        target,
        lambda found: share(search.trials.run(found), dense, search.budget.kind),
        steps=7,
    )


def fractions_of(method: Method) -> list[str]:
    """The fields of a method that hold fractions of its scored tokens; for a schedule those of its parts."""
    if isinstance(method, Schedule):
        return [field for part in method.parts for field in fractions_of(part)]
    named = [field for field, value in vars(method).items() if field.startswith("keep") and isinstance(value, float)]
    return named if method.reads else []


def shared(method: Method, p: float) -> Method:
    if isinstance(method, Schedule):
        return Schedule(tuple(shared(part, p) for part in method.parts))
    return replace(method, **{field: Share(p) for field in fractions_of(method)})


def pick(found: Iterable[Candidate], limit: float, request: Request) -> Candidate:
    """The most faithful within the budget; with a constraint the cheapest that fulfils it. ValueError if none does."""
    fitting = [c for c in found if c.cost <= limit * CHANCE]
    if not fitting:
        raise ValueError(f"nothing that was tried costs {limit:.1%} of dense or less: raise the budget or --trials")
    if not request.constrained:
        return min(fitting, key=lambda c: c.loss)
    meets = [
        c
        for c in fitting
        if (request.max_kl is None or c.kl <= request.max_kl)
        and (request.agreement is None or c.agreement >= request.agreement)
    ]
    if not meets:
        raise ValueError(
            f"within the budget the best agreement is {max(c.agreement for c in fitting):.1%} and the smallest KL "
            f"{min(c.kl for c in fitting):.3g}: raise the budget, or ask for less"
        )
    return min(meets, key=lambda c: c.cost)


def kinds_of(trials: Trials, search: Search, limit: float, request: Request, advance: Advance) -> dict[str, Candidate]:
    """For each kind of question with enough samples the best of a search of its own, begun with what did well."""
    found = {}
    kinds = [k for k in KINDS if sum(trials.kind(sample) == k for sample in trials.samples) >= FEWEST]
    told = counting(advance, "kinds of question", len(kinds))
    for k in kinds:
        some_trials = trials.of(k)
        own = Search(some_trials, search.budget, request.seed, lambda: None)
        names = [sample.name for sample in some_trials.samples]
        dense = some_trials.run(None)
        tried = [
            candidate_of(c.family, c.method, c.shape, some(trials.run(c.method), names), dense, search.budget.kind)
            for c in search.found.values()
        ]
        for c in tried:
            own.found[repr(c.method)] = c
        shapes = [c.shape for c in sorted(tried, key=lambda c: c.loss) if c.family == "schedule" and c.shape][:AGAIN]
        if "schedule" in request.families:
            own.family("schedule", len(shapes) + request.trials // 4, shapes)
        with suppress(ValueError):  # no candidate fits or fulfils: the default serves this kind
            found[k] = pick(own.found.values(), limit, request)
        told(1)
    return found


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


def published(layers: int, own: int | None) -> dict[str, Method]:
    """The published defaults, their layers in proportion to the depth, and VTW at the layer of its own search."""
    found = {f"{name}, published": scale_layers(METHODS[name](), (), layers) for name in PUBLISHED}
    if own is not None and 0 < own < layers:
        found["vtw, its own K"] = METHODS["vtw"](layer=own)  # pyright: ignore[reportCallIssue]
    return found


def timed(trials: Trials, methods: Sequence[Method], place: Path, advance: Advance) -> dict[str, Figure]:
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


def guard_of(
    searched: Trials, guarded: Trials, chosen: Mapping[str, Method], request: Request, advance: Advance
) -> dict[str, Guard | None]:
    """For each entry its guard; None where prompts are better not pruned at all."""
    assert request.guard is not None
    alpha, confidence, fresh = request.guard, request.confidence, request.fresh

    def method(k: str) -> Method:
        return chosen.get(k, chosen[DEFAULT])

    told = counting(advance, "guard", len(guarded.samples))
    outcomes = guarded.run_all(lambda k: [None, method(k)], told)
    found = {s.name: outcomes[name_of(method(guarded.kind(s)))][s.name] for s in guarded.samples}
    seen = seen_of(guarded, found, outcomes[name_of(None)], chosen)
    tuning = {s.name: searched.run(method(searched.kind(s)))[s.name] for s in searched.samples}
    row = bound.row_of_thresholds(seen_of(searched, tuning, searched.run(None), chosen))
    thresholds = bound.choose(row, seen, alpha, confidence, fresh)
    guards: dict[str, Guard | None] = {}
    for k in chosen:
        threshold = thresholds.get(k, bound.ALWAYS)
        again = [one.signal < threshold for one in seen if one.kind == k]
        rerun = sum(again) / max(1, len(again))
        guards[k] = (
            None
            if threshold >= bound.ALWAYS
            else Guard("margin", threshold, alpha, confidence, len(seen), rerun, fresh)
        )
    return guards


def seen_of(trials: Trials, outcomes: Outcomes, dense: Outcomes, kinds: Iterable[str]) -> list[bound.Seen]:
    """What the guard has to know of every prompt; kinds without an entry count as the default."""
    known = set(kinds)
    return [
        bound.Seen(
            kind=trials.kind(s) if trials.kind(s) in known else DEFAULT,
            signal=outcomes[s.name].margin,
            differs=not outcomes[s.name].same,
            pruned=outcomes[s.name].flops,
            again=outcomes[s.name].again,
            dense=dense[s.name].flops,
        )
        for s in trials.samples
    ]


def some(outcomes: Outcomes, names: Iterable[str]) -> dict[str, Outcome]:
    return {name: outcomes[name] for name in names if name in outcomes}
