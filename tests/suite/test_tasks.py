"""The questions of the benchmark follow from a seed, and are balanced as their metrics want."""

import sys
from collections import Counter

import pytest

from foveate.suite.metrics import METRICS
from foveate.suite.questions import TASKS
from foveate.suite.tasks import METRICS_OF, draw


def told(samples):
    return [(s.name, s.question, s.answers, s.kind) for s in samples]


def test_the_same_seed_draws_the_same_questions_and_another_draws_others():
    names = ("existence", "count")
    assert told(draw(names, 4, 0)) == told(draw(names, 4, 0)) != told(draw(names, 4, 1))


def test_fewer_questions_are_the_first_of_more_and_tasks_do_not_disturb_each_other():
    more = {s.name: told([s]) for s in draw(("existence", "read", "count"), 6, 0)}
    for sample in draw(("read",), 3, 0):
        assert more[sample.name] == told([sample])


def test_every_task_has_metrics_and_as_many_questions_as_asked_for():
    assert METRICS_OF.keys() == {*TASKS, "easy-vqa"}
    assert all(metric in METRICS for metrics in METRICS_OF.values() for metric in metrics)
    samples = draw(tuple(TASKS), 2, 0)
    assert Counter(s.task for s in samples) == dict.fromkeys(TASKS, 2)
    assert samples[0].picture().size == (144, 144)


def test_existence_asks_yes_and_no_equally_often_for_each_kind_of_negatives():
    pairs = Counter((s.kind, s.answers[0]) for s in draw(("existence",), 12, 0))
    kinds = ("random", "popular", "adversarial")
    assert pairs == {(kind, answer): 2 for kind in kinds for answer in ("yes", "no")}


def test_an_unknown_task_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no task.*existence, colour"):
        draw(("sing",), 1, 0)


def test_easy_vqa_is_asked_in_its_own_words_and_only_its_test_split():
    easy = pytest.importorskip("easy_vqa")
    samples = draw(("easy-vqa",), 20, 0)
    texts, answers, _ = easy.get_test_questions()
    assert all((s.question, s.answers[0]) in set(zip(texts, answers, strict=True)) for s in samples)
    assert len({s.question for s in samples}) > 5
    assert samples[0].picture().size == (64, 64)


def test_without_its_package_easy_vqa_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match="pip install easy-vqa"):
        draw(("easy-vqa",), 1, 0)
