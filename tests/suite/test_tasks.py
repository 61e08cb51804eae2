"""The questions of the benchmark follow from a seed, and are balanced as their metrics want."""

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
    assert METRICS_OF.keys() == TASKS.keys()
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
