"""Answers are checked by reading the question's words against the list of things, not by the code that wrote it."""

import re

import numpy as np
import pytest

from foveate.suite.questions import NEGATIVES, NUMBERS, TASKS, Question, ask, existence
from foveate.suite.scenes import COLOURS, SHAPES, SIZE, Scene, draw_scene, pictograms, popular_pictograms

SINGULAR = {"crosses": "cross", "strawberries": "strawberry", "buses": "bus", "grapes": "grapes", "fish": "fish"}
SINGULAR |= {"octopuses": "octopus", "cactuses": "cactus", "butterflies": "butterfly"}


def matches(thing, words: list[str]) -> bool:
    names = [w for w in words if w in (*SHAPES, *pictograms())]
    colours = [w for w in words if w in COLOURS]
    return thing.kind != "text" and thing.name in names and (not colours or thing.colour in colours)


def words_of(question: str) -> list[str]:
    words = re.findall(r"[a-zA-Z]+", question)
    return [SINGULAR.get(w, w) for w in words]


def drawn(count: int):
    for seed in range(count):
        scene = draw_scene("held-out", seed)
        for question in ask(scene, np.random.default_rng(seed)):
            yield scene, question


def of(task: str, count: int = 150) -> list[tuple[Scene, Question]]:
    found = [(s, q) for s, q in drawn(count) if q.task == task]
    assert len(found) > 20
    return found


def test_existence_is_true_of_the_scene():
    for scene, question in of("existence"):
        there = any(matches(t, words_of(question.question)) for t in scene.things)
        assert question.answers == (("yes",) if there else ("no",)), question
        assert (question.negative is None) == there


def test_negatives_are_of_the_kind_they_say():
    for seed in range(80):
        scene, rng = draw_scene("held-out", seed), np.random.default_rng(seed)
        for kind in NEGATIVES:
            question = existence(scene, rng, kind)
            if question is None:
                continue
            assert question.negative == kind and question.answers == ("no",)
            words = words_of(question.question)
            if kind == "popular":
                assert set(words) & {*SHAPES, *popular_pictograms()}
            name = next(w for w in words if w in (*SHAPES, *pictograms()))
            if kind == "adversarial" and name in pictograms():
                theme = pictograms()[name][0]
                assert any(t.kind == "pictogram" and pictograms()[t.name][0] == theme for t in scene.things)
            if kind == "adversarial" and name in SHAPES:
                assert any(t.name == name for t in scene.things)


def test_colour_and_shape_are_true_of_the_scene():
    for scene, question in of("colour") + of("shape"):
        words = words_of(question.question)
        if question.task == "colour":
            right = {t.colour for t in scene.things if t.name in words or (t.kind == "text" and "text" in words)}
        else:
            right = {t.name for t in scene.things if t.kind == "shape" and t.colour in words}
        assert right == set(question.answers)


def test_counts_are_true_of_the_scene():
    for scene, question in of("count"):
        words = words_of(question.question)
        words = [w[:-1] if w.endswith("s") and w[:-1] in (*SHAPES, *pictograms()) else w for w in words]
        if "shapes" in words:
            colours = [w for w in words if w in COLOURS]
            number = sum(t.kind == "shape" and (not colours or t.colour in colours) for t in scene.things)
        else:
            number = sum(matches(t, words) for t in scene.things)
        assert question.answers == (NUMBERS[number], str(number)), question


def test_positions_and_relations_are_true_of_the_scene():
    for scene, question in of("position"):
        (thing,) = [t for t in scene.things if matches(t, words_of(question.question))]
        x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
        for word in question.answers[0].split():
            assert {"left": x < SIZE / 2, "right": x > SIZE / 2, "top": y < SIZE / 2, "bottom": y > SIZE / 2}[word]
    for scene, question in of("relation"):
        names = [w for w in words_of(question.question) if w in (*SHAPES, *pictograms())]
        (first,), (second,) = ([t for t in scene.things if t.name == name] for name in names)
        (fx, fy), (sx, sy) = first.centre, second.centre
        said = next(w for w in ("left of", "right of", "above", "below") if w in question.question)
        holds = {"left of": fx < sx, "right of": fx > sx, "above": fy < sy, "below": fy > sy}[said]
        assert question.answers == ("yes" if holds else "no",)


def test_reading_naming_and_describing_are_true_of_the_scene():
    for scene, question in of("read"):
        assert question.answers == tuple(t.name for t in scene.things if t.kind == "text")
    for scene, question in of("name"):
        row, column = re.search(r"(top|bottom) (left|right)", question.question).groups()
        inside = [
            t
            for t in scene.things
            if (t.centre[1] < SIZE / 2) == (row == "top") and (t.centre[0] < SIZE / 2) == (column == "left")
        ]
        assert [t.name for t in inside] == [question.answers[-1]]
    for scene, question in of("describe"):
        assert all(t.name in question.answers[0] for t in scene.things)
        assert len(re.split(", | and ", question.answers[0])) == len(scene.things)


def test_the_letter_of_a_choice_names_the_only_right_option():
    for scene, question in of("choice"):
        stem, options = re.match(r"(.*?\?) (.*)", question.question).groups()
        listed = dict(re.findall(r"([abcd])\) (\w+)", options))
        assert len(set(listed.values())) == 4
        letter, word = question.answers
        assert listed[letter] == word
        if word in NUMBERS:
            words = [w[:-1] if w[:-1] in (*SHAPES, *pictograms()) else w for w in words_of(stem)]
            true = [NUMBERS[sum(matches(t, words) for t in scene.things)]]
        elif word in COLOURS:
            true = [t.colour for t in scene.things if t.name in words_of(stem)]
        else:
            true = [t.name for t in scene.things]
        assert [w for w in listed.values() if w in true] == [word]


def test_yes_and_no_are_asked_equally_often():
    share = np.mean([q.answers[0] == "yes" for _, q in of("existence", 400)])
    assert 0.4 < share < 0.6


def test_all_tasks_are_asked():
    assert {q.task for _, q in drawn(60)} == set(TASKS)


@pytest.mark.parametrize("task", ["existence", "count", "choice"])
def test_questions_are_the_same_whenever_their_seed_is_drawn(task):
    scene = draw_scene("train", 1)
    assert TASKS[task](scene, np.random.default_rng(4)) == TASKS[task](scene, np.random.default_rng(4))
