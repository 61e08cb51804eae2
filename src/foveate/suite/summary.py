"""From the journal's answers to figures: scores with intervals, fidelity, cost. Runs nothing, and reads no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from foveate.suite import statistics
from foveate.suite.metrics import pope, score
from foveate.suite.runner import Setting
from foveate.suite.tasks import Sample

Interval = tuple[float, float]
NAN = float("nan")


@dataclass(frozen=True)
class Versus:
    """How much better than another setting, on the same samples: the difference of scores and its 95 % interval."""

    difference: float
    interval: Interval

    @property
    def better(self) -> bool:
        """Whether chance is no likely explanation."""
        return self.interval[0] > 0


@dataclass(frozen=True)
class Cell:
    """One setting on one task; shares are of the dense model's. NaN where nothing could be had."""

    score: float
    interval: Interval
    samples: int
    errors: int
    dense: Versus | None  # None for dense itself
    random: Versus | None  # None for dense and random
    kl: float  # nats, mean
    top1: float
    same: float
    visual: float
    flops: float
    metrics: dict[str, float]  # of the task, the score among them
    pope: dict[str, dict[str, float]] = field(default_factory=dict)  # kind of negatives -> figures


@dataclass(frozen=True)
class Row:
    """One setting on all tasks."""

    setting: Setting
    cells: dict[str, Cell]
    quality: float  # mean over tasks of the share of the dense score
    interval: Interval
    random: Versus | None  # of `quality`
    visual: float
    flops: float
    errors: int


def summarise(samples: Sequence[Sample], settings: Sequence[Setting], answers: Mapping) -> list[Row]:
    """A row for each setting, the dense one first.

    answers: (setting, sample) -> record, from the journal; all must be there.
    """
    tasks: dict[str, list[Sample]] = {}
    for sample in samples:
        tasks.setdefault(sample.task, []).append(sample)
    drawn = dict(zip(tasks, statistics.resamples([len(of_task) for of_task in tasks.values()]), strict=True))
    scores = {
        setting.name: {task: scores_of(of_task, setting, answers) for task, of_task in tasks.items()}
        for setting in settings
    }
    dense = settings[0]
    rows = []
    for setting in settings:
        rival = rival_of(setting, settings)
        cells = {}
        for task, of_task in tasks.items():
            mine = scores[setting.name][task]
            baselines = {
                "dense": None if setting is dense else versus(mine, scores[dense.name][task], drawn[task]),
                "random": None if rival is None else versus(mine, scores[rival.name][task], drawn[task]),
            }
            records = [answers[setting.name, sample.name] for sample in of_task]
            cells[task] = cell(of_task, records, mine, drawn[task], baselines, answers, dense)
        mine, base = scores[setting.name], scores[dense.name]
        better = None if rival is None else quality_versus(mine, scores[rival.name], base, drawn)
        rows.append(
            Row(
                setting=setting,
                cells=cells,
                quality=quality(mine, base),
                interval=statistics.interval(resampled_quality(mine, base, drawn)),
                random=better,
                visual=average([c.visual for c in cells.values()]),
                flops=average([c.flops for c in cells.values()]),
                errors=sum(c.errors for c in cells.values()),
            )
        )
    return rows


def rival_of(setting: Setting, settings: Sequence[Setting]) -> Setting | None:
    """Random pruning at the same point of the dial."""
    if setting.method is None or setting.label == "random":
        return None
    return next((s for s in settings if s.label == "random" and s.point == setting.point), None)


def scores_of(samples: Sequence[Sample], setting: Setting, answers: Mapping) -> np.ndarray:
    """(samples,): the scores of a setting's answers; NaN where the sample failed."""
    said = [answers[setting.name, sample.name].get("answer") for sample in samples]
    return score(samples[0].metrics[0], said, [sample.answers for sample in samples])


def versus(mine: np.ndarray, other: np.ndarray, drawn: np.ndarray) -> Versus:
    difference = mine - other  # NaN where either failed
    return Versus(statistics.mean(difference), statistics.interval(statistics.means(difference, drawn)))


def cell(
    samples: Sequence[Sample],
    records: Sequence[Mapping[str, Any]],
    scores: np.ndarray,
    drawn: np.ndarray,
    baselines: Mapping[str, Versus | None],
    answers: Mapping,
    dense: Setting,
) -> Cell:
    said = [record.get("answer") for record in records]
    truths = [sample.answers for sample in samples]
    full = [answers[dense.name, sample.name] for sample in samples]
    good = [record for record in records if "answer" in record]
    costs = [
        (record["flops"], whole["flops"])
        for record, whole in zip(records, full, strict=True)
        if record.get("flops") and whole.get("flops")
    ]
    return Cell(
        score=statistics.mean(scores),
        interval=statistics.interval(statistics.means(scores, drawn)),
        samples=len(samples),
        errors=len(records) - len(good),
        dense=baselines["dense"],
        random=baselines["random"],
        kl=average([record["kl"] for record in good if "kl" in record]),
        top1=average([record["top1"] for record in good if "kl" in record]),
        same=average([record["same"] for record in good if "kl" in record]),
        visual=average([record["visual"] for record in good]),
        flops=sum(mine for mine, _ in costs) / sum(whole for _, whole in costs) if costs else NAN,
        metrics={metric: statistics.mean(score(metric, said, truths)) for metric in samples[0].metrics},
        pope=pope_by_kind(samples, said) if samples[0].metrics[0] == "yes-no" else {},
    )


def pope_by_kind(samples: Sequence[Sample], said: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """POPE's figures for each kind of negatives, and for all."""
    found = {}
    for kind in (*dict.fromkeys(sample.kind for sample in samples if sample.kind), None):
        chosen = [i for i, sample in enumerate(samples) if kind in (None, sample.kind)]
        found[kind or "all"] = pope([said[i] for i in chosen], [samples[i].answers for i in chosen])
    return found


def quality(mine: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray]) -> float:
    """Mean over tasks of the score as a share of the dense score; tasks that the dense model cannot do are left out."""
    pairs = [(statistics.mean(mine[task]), statistics.mean(dense[task])) for task in mine]
    return average([a / b for a, b in pairs if b > 0])


def resampled_quality(
    mine: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray]
) -> np.ndarray:
    """(resamples,): `quality` in each resample."""
    shares = []
    for task, resample in drawn.items():
        whole = statistics.means(dense[task], resample)
        if statistics.mean(dense[task]) > 0:
            part = statistics.means(mine[task], resample)
            shares.append(np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0))
    return np.mean(shares, axis=0) if shares else np.array([np.nan])


def quality_versus(
    mine: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    dense: Mapping[str, np.ndarray],
    drawn: Mapping[str, np.ndarray],
) -> Versus:
    differences = resampled_quality(mine, dense, drawn) - resampled_quality(other, dense, drawn)
    return Versus(quality(mine, dense) - quality(other, dense), statistics.interval(differences))


def average(values: Sequence[float]) -> float:
    """The mean of what is known; NaN if nothing is."""
    known = [value for value in values if value == value]
    return fmean(known) if known else NAN
