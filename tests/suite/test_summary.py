"""Figures from answers: intervals are paired, failures are counted, and random is the bar."""

import math

import numpy as np
import pytest
from PIL import Image

from foveate.methods import FastV, Random, Uniform
from foveate.suite import statistics
from foveate.suite.runner import Setting
from foveate.suite.summary import summarise
from foveate.suite.tasks import Sample

DENSE = Setting("dense", "dense", "dense", None)
FASTV = Setting("fastv 50%", "fastv", "50%", FastV())
RANDOM = Setting("random 50%", "random", "50%", Random())
UNIFORM = Setting("uniform 50%", "uniform", "50%", Uniform())
SETTINGS = (DENSE, FASTV, RANDOM, UNIFORM)


def samples(count: int, task: str = "read", metric: str = "exact", kind: str | None = None) -> list[Sample]:
    return [Sample(task, i, "?", ("yes",), (metric,), kind, lambda: Image.new("RGB", (1, 1))) for i in range(count)]


def answers(asked: list[Sample], **right: int) -> dict:
    """The first so many answers of each setting are right."""
    fidelity = {"visual": 0.5, "flops": 50, "kl": 0.1, "top1": True, "same": False}
    found = {}
    for setting in SETTINGS:
        for sample in asked:
            said = "yes" if sample.number < right[setting.label] else "no"
            found[setting.name, sample.name] = {"answer": said, **fidelity}
            if setting is DENSE:
                found[setting.name, sample.name] |= {"visual": 1.0, "flops": 100}
    return found


def by_label(rows):
    return {row.setting.label: row for row in rows}


def test_scores_costs_and_fidelity_are_means():
    asked = samples(20)
    rows = by_label(summarise(asked, SETTINGS, answers(asked, dense=20, fastv=15, random=10, uniform=10)))
    cell = rows["fastv"].cells["read"]
    assert (cell.score, cell.samples, cell.errors) == (0.75, 20, 0)
    assert (cell.flops, cell.visual, cell.kl, cell.top1, cell.same) == pytest.approx((0.5, 0.5, 0.1, 1, 0))
    assert cell.dense.difference == -0.25 and cell.dense.interval[0] < -0.25 < cell.dense.interval[1] < 0
    assert rows["fastv"].quality == 0.75 and rows["dense"].quality == 1
    assert rows["dense"].cells["read"].dense is None


def test_a_method_has_to_beat_random_beyond_chance_and_on_the_same_questions():
    asked = samples(100)
    found = answers(asked, dense=100, fastv=60, random=52, uniform=52)
    rows = by_label(summarise(asked, SETTINGS, found))
    # Right on 8 questions more, and on no question less: beyond chance, although each score is 10 points uncertain.
    assert rows["fastv"].cells["read"].random.better and rows["fastv"].random.better
    low, high = rows["fastv"].cells["read"].interval
    assert high - low > 0.15
    assert not rows["uniform"].cells["read"].random.better and not rows["uniform"].random.better
    assert rows["random"].random is None and rows["dense"].random is None


def test_equal_gains_and_losses_do_not_beat_random():
    asked = samples(40)
    found = answers(asked, dense=40, fastv=20, random=20, uniform=20)
    for sample in asked:  # fastv is right where random is not
        found[FASTV.name, sample.name]["answer"] = "no" if sample.number < 20 else "yes"
    versus = by_label(summarise(asked, SETTINGS, found))["fastv"].cells["read"].random
    assert versus.difference == 0 and versus.interval[0] < 0 < versus.interval[1] and not versus.better


def test_a_failed_sample_is_counted_and_left_out_and_never_an_answer():
    asked = samples(10)
    found = answers(asked, dense=10, fastv=10, random=5, uniform=5)
    found[FASTV.name, "read/0"] = {"error": "ValueError: no"}
    rows = by_label(summarise(asked, SETTINGS, found))
    cell = rows["fastv"].cells["read"]
    assert cell.errors == rows["fastv"].errors == 1 and cell.score == 1 and cell.dense.difference == 0


def test_if_all_failed_there_is_no_figure():
    asked = samples(3)
    found = answers(asked, dense=3, fastv=3, random=3, uniform=3)
    for sample in asked:
        found[FASTV.name, sample.name] = {"error": "ValueError: no"}
    row = by_label(summarise(asked, SETTINGS, found))["fastv"]
    assert row.errors == 3 and all(math.isnan(x) for x in (row.quality, row.flops, row.cells["read"].score))
    assert not row.random.better


def test_the_mean_over_tasks_weighs_each_task_by_its_dense_score():
    asked = samples(10, "read") + samples(10, "name") + samples(10, "hopeless")
    found = answers(asked, dense=10, fastv=5, random=5, uniform=5)
    for sample in asked:
        if sample.task == "name":  # dense is right half the time, and so is fastv
            found[DENSE.name, sample.name] = dict(found[FASTV.name, sample.name])
        if sample.task == "hopeless":
            found[DENSE.name, sample.name]["answer"] = "no"
    assert by_label(summarise(asked, SETTINGS, found))["fastv"].quality == pytest.approx((0.5 + 1.0) / 2)


def test_popes_figures_are_apart_for_each_kind_of_negatives():
    asked = samples(4, "existence", "yes-no", "random")
    rows = summarise(asked, SETTINGS, answers(asked, dense=4, fastv=3, random=2, uniform=2))
    pope = by_label(rows)["fastv"].cells["existence"].pope
    assert pope.keys() == {"random", "all"} and pope["random"]["recall"] == 0.75


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(120):
        scores = (rng.random(80) < 0.7).astype(float)
        (drawn,) = statistics.resamples([80], seed=trial)
        low, high = statistics.interval(statistics.means(scores, drawn))
        covered += low <= 0.7 <= high
    assert 0.89 < covered / 120 < 0.99


def test_resamples_of_a_mean_leave_failures_out():
    scores, drawn = np.array([1.0, np.nan, 0.0]), np.array([[1, 2, 0], [0, 3, 0], [1, 1, 1]])
    assert statistics.means(scores, drawn) == pytest.approx([1.0, np.nan, 0.5], nan_ok=True)
