"""The search for a method under a budget: what each family can be set to, and which setting is the most faithful."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate import flow
from foveate.calibration.trials import Outcomes, Trials, loss, rounded, scheduled_share, share, solve
from foveate.flow.withdrawal import ETA, FIRST
from foveate.methods import VTW, FastV, HiMAP, Method, VisiPruner
from foveate.policy.schedule import SCORES, Cut, Schedule
from foveate.suite.dial import PUBLISHED_LAYERS

FAMILIES = ("fastv", "himap", "vtw", "visipruner", "schedule")
Dial = Callable[[float], Method]
Shape = dict[str, Any]  # what Optuna draws; what is left, a dial, is solved for the budget
CHANCE = 1.005  # a budget is met if the average over these very prompts is above it by no more than this
STAGES = 3  # cuts of a free schedule, at most
AGAIN = 6  # shapes that another budget or kind starts from


@dataclass(frozen=True)
class Candidate:
    """A method that was tried.

    Attributes:
        shape: what was drawn for it; None if nothing was.
        loss: see `trials.loss`. cost: share of dense, in the unit of the budget.
        agreement: answers that stay the same; by_task: those of each task.
    """

    family: str
    method: Method
    shape: Shape | None
    loss: float
    cost: float
    agreement: float
    kl: float
    by_task: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How much a prompt may cost, as a share of dense.

    kind: "flops", exact FLOPs of the prompt in decoder and LM head; "visual", layer-averaged visual tokens.
    """

    kind: str
    target: float


def vtw_layer(
    model: Any, batches: Iterable[flow.Batch], eta: float = ETA, first: int | None = None
) -> tuple[int | None, list[float]]:
    """VTW's own search: the first layer from `first` on where withdrawal moves the prediction by KL <= `eta`, in nats.

    Returns the layer, None if there is none, and the curve: the mean KL of every layer.

    first: published 5 of 32 layers; by default in proportion to the model's depth.
    """
    found = flow.withdrawal(model, batches)
    depth = len(found.labels["layer"])
    start = max(1, round(FIRST * depth / PUBLISHED_LAYERS)) if first is None else first
    return flow.search(found, eta=eta, first=start), found.mean("kl").tolist()


def fastv(draw: Any, layers: int, latest: int) -> Dial:
    layer = draw.suggest_int("layer", 1, latest)
    return lambda t: FastV(layer, rounded(t))


def himap(draw: Any, layers: int, latest: int) -> Dial:
    layer1 = draw.suggest_int("layer1", 1, min(latest, layers - 2))
    layer2 = min(layer1 + draw.suggest_int("later", 1, max(1, layers // 2)), layers - 1)
    power = draw.suggest_float("power", 0.25, 4.0, log=True)
    return lambda t: HiMAP(layer1, rounded(t), layer2, rounded(t**power))


def schedule(draw: Any, layers: int, latest: int) -> Dial:
    """Up to `STAGES` cuts at ascending layers, each with its score and its part of the dial; then no image at all."""
    number = draw.suggest_int("stages", 1, STAGES)
    layer, cuts = 0, []
    for i in range(number):
        layer += draw.suggest_int(f"layer{i}", 1, latest if i == 0 else max(1, layers // 2))
        score = draw.suggest_categorical(f"score{i}", SCORES)
        power = draw.suggest_float(f"power{i}", 0.2, 5.0, log=True)
        if layer < layers:
            cuts.append((layer, score, power))
    leave = cuts[-1][0] + draw.suggest_int("leave", 1, layers)  # beyond the last layer: some of the image stays
    last = (VTW(leave),) if leave < layers else ()
    return lambda t: Schedule((*(Cut(layer, rounded(t**power), score) for layer, score, power in cuts), *last))


def as_schedule(candidate: Candidate) -> Shape | None:
    """A FastV or HiMAP that was tried, as cuts that a free schedule can begin with; what is missing is `leave`."""
    shape = candidate.shape
    if candidate.family == "fastv" and shape:
        return {"stages": 1, "layer0": shape["layer"], "score0": "last", "power0": 1.0}
    if candidate.family == "himap" and shape:
        first = {"stages": 2, "layer0": shape["layer1"], "score0": "instruction", "power0": 1.0}
        return {**first, "layer1": shape["later"], "score1": "visual", "power1": shape["power"]}
    return None


def visipruner(draw: Any, layers: int) -> Method:
    """Boundary and thresholds. There is no dial: what it keeps depends on the prompt."""
    stages = draw.suggest_categorical("stages", ("shallow,middle,deep", "middle,deep"))
    return VisiPruner(
        stages=tuple(stages.split(",")),
        shallow=draw.suggest_int("shallow", 0, max(0, layers // 2)),
        fire=1 - draw.suggest_float("fire", 1e-4, 0.5, log=True),
        influence=draw.suggest_float("influence", 1e-3, 10.0, log=True),
        exit=1 - draw.suggest_float("exit", 1e-6, 0.3, log=True),
        exit_count=draw.suggest_int("exit_count", 1, 2),
    )


DIALS: dict[str, Callable[[Any, int, int], Dial]] = {"fastv": fastv, "himap": himap, "schedule": schedule}


class Search:
    """A search among the settings of some families, on recorded prompts and under a budget.

    The optimiser's draws depend only on the seed and on what was found, and what was found is in the journal: a search
    that was stopped is gone through again from the start, and nothing is run twice.
    """

    def __init__(self, trials: Trials, budget: Budget, seed: int, advance: Callable[[], None]):
        self.trials, self.budget, self.seed, self.advance = trials, budget, seed, advance
        self.config = trials.model.config
        self.layers = self.config.get_text_config().num_hidden_layers
        self.items = [trials.item(sample) for sample in trials.samples]
        self.found: dict[str, Candidate] = {}
        fits = (layer for layer in range(1, self.layers) if self.cost_of(VTW(layer)) <= budget.target)
        self.latest = max(fits, default=1)  # a later first cut costs too much even with nothing kept

    def cost_of(self, method: Method) -> float:
        return scheduled_share(method, self.items, self.config, self.budget.kind)

    def fitted(self, dial: Dial) -> Method:
        """The most that fits the budget. Raises ValueError if nothing does."""
        return solve(dial, self.budget.target, self.cost_of)

    def family(self, name: str, count: int, known: Sequence[Shape] = ()) -> None:
        """Try settings of one family: all of them where they are few, else `count` that Optuna draws.

        known: shapes that are tried first.
        """
        if name == "vtw":
            for layer in range(1, self.layers):
                if self.cost_of(VTW(layer)) <= self.budget.target:
                    self.note(name, VTW(layer), None, self.outcomes(VTW(layer)))
                self.advance()
        elif name == "fastv":
            for layer in range(1, self.layers):
                self.fixed(name, {"layer": layer})
                self.advance()
        else:
            self.drawn(name, count, known)

    def fixed(self, name: str, shape: Shape) -> None:
        """Try one shape, if it fits the budget."""
        try:
            method = self.fitted(DIALS[name](Fixed(shape), self.layers, self.latest))
        except ValueError:
            return
        self.note(name, method, shape, self.outcomes(method))

    def drawn(self, name: str, count: int, known: Sequence[Shape]) -> None:
        """Let Optuna draw `count` settings, and leave those early that do worse than half of the others."""
        optuna = optimiser()
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=max(4, count // 4)),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=max(4, count // 4)),
        )
        for shape in known:
            study.enqueue_trial(shape)

        def objective(trial: Any) -> float:
            self.advance()
            try:
                if name in DIALS:
                    method = self.fitted(DIALS[name](trial, self.layers, self.latest))
                else:
                    method = visipruner(trial, self.layers)
                    method.cuts(self.layers)
            except ValueError:
                raise optuna.TrialPruned from None
            whole: dict = {}
            for step, batches in enumerate(self.trials.rounds):
                for batch in batches:
                    whole |= self.trials.batch(batch, method)
                trial.report(loss(whole.values()), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
            candidate = self.note(name, method, dict(trial.params), whole)
            over = max(0.0, candidate.cost - self.budget.target)  # only a method without a dial can cost too much
            return candidate.loss + (1 + over if over else 0)

        study.optimize(objective, n_trials=count)

    def outcomes(self, method: Method) -> dict:
        return self.trials.run(method)

    def note(self, family: str, method: Method, shape: Shape | None, outcomes: Outcomes) -> Candidate:
        candidate = candidate_of(family, method, shape, outcomes, self.trials.run(None), self.budget.kind)
        self.found[repr(method)] = candidate
        return candidate

    @property
    def fitting(self) -> list[Candidate]:
        """What was tried and costs no more than the budget, best first."""
        within = [c for c in self.found.values() if c.cost <= self.budget.target * CHANCE]
        return sorted(within, key=lambda candidate: candidate.loss)


def candidate_of(
    family: str, method: Method, shape: Shape | None, outcomes: Outcomes, dense: Outcomes, kind: str
) -> Candidate:
    found = list(outcomes.values())
    tasks: dict[str, list[bool]] = {}
    for name, outcome in outcomes.items():
        tasks.setdefault(name.rsplit("/", 1)[0], []).append(outcome.same)
    return Candidate(
        family=family,
        method=method,
        shape=shape,
        loss=loss(found),
        cost=share(outcomes, dense, kind),
        agreement=sum(o.same for o in found) / len(found),
        kl=sum(o.kl for o in found) / len(found),
        by_task={task: sum(same) / len(same) for task, same in tasks.items()},
    )


@dataclass
class Fixed:
    """Stands in for Optuna's trial where a shape is given."""

    shape: Shape

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self.shape[name]

    def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> float:
        return self.shape[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.shape[name]


def optimiser() -> Any:
    """Optuna, without its log. Raises ImportError that names the extra."""
    try:
        import optuna
    except ImportError:
        raise ImportError("calibration searches with Optuna: pip install 'foveate[calibrate]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
