"""Metrics against published worked examples, values of the reference code, and figures counted by hand."""

import numpy as np
import pytest

from foveate.suite.cider import cider
from foveate.suite.metrics import METRICS, anls, choice, exact, pope, score, vqa, yes_no
from foveate.suite.words import plain, vqa_form


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("100,978", "100978"),  # from here on: the examples at visualqa.org/evaluation.html
        ("dont", "don't"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("The Red Ball.", "red ball"),
        ("Two dogs, and a cat", "2 dogs and cat"),
        ("3.5", "3.5"),
        ("black-and-white", "black and white"),
        ("its well", "its well"),  # words of their own, no contractions
        ("  none ", "0"),
        ("snake_case?!", "snake case"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_vqa_says(said, form):
    assert vqa_form(said) == form


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_people_is_the_published_one(agree, accuracy):
    people = ("red",) * agree + tuple(f"other {i}" for i in range(10 - agree))
    assert vqa("Red.", people) == pytest.approx(accuracy)


def test_a_few_true_answers_are_no_poll_of_people():
    assert vqa("3", ("three", "3")) == 1 and vqa("a dog", ("dog",)) == 1 and vqa("cat", ("dog",)) == 0


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("yes", "yes", 1),
        ("No, there is no dog.", "no", 1),
        ("Yes, there is no doubt", "yes", 1),  # the first word counts
        ("There is not.", "no", 1),
        ("nothing", "no", 0),  # neither: "no" inside a word is no no
        ("", "no", 0),
        ("yes", "no", 0),
    ],
)
def test_yes_and_no_are_the_first_that_is_said(said, truth, right):
    assert yes_no(said, (truth,)) == right


def test_popes_figures_are_those_of_the_confusion_table():
    truths = [("yes",)] * 5 + [("no",)] * 5
    said = ["yes", "yes", "yes", "no", "hm", "no", "no", "no", "yes", None]  # the last sample failed
    figures = pope(said, truths)
    assert figures == pytest.approx(
        {"accuracy": 6 / 9, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 4 / 9, "neither": 1 / 9}
    )


@pytest.mark.parametrize("said", ["b", "B", "(B)", "B.", "b) a dog", "The answer is B", "Answer: (B)", "dog", "B: dog"])
def test_a_choice_is_a_letter_or_the_words_of_its_option(said):
    assert choice(said, ("b", "dog")) == 1


@pytest.mark.parametrize("said", ["a", "", "a dog", "c) dog", "both", "bb"])
def test_what_is_no_choice_is_wrong(said):
    assert choice(said, ("b", "dog")) == 0


def test_an_exact_match_forgives_case_spaces_and_marks_at_the_ends():
    assert exact(" Top  LEFT. ", ("top left",)) == 1
    assert exact("topleft", ("top left",)) == 0
    assert plain('"STOP!"') == "stop"


@pytest.mark.parametrize(
    ("said", "truths", "value"),
    [
        ("STOP", ("stop",), 1.0),
        ("stap", ("stop",), 0.75),
        ("stXX", ("stop",), 0.5),  # one half still counts
        ("sXXX", ("stop",), 0.0),
        ("kitten", ("dog", "sitting"), 4 / 7),  # the textbook distance of 3
        ("", ("stop",), 0.0),
    ],
)
def test_anls_is_the_similarity_to_the_nearest_truth_from_one_half_on(said, truths, value):
    assert anls(said, truths) == pytest.approx(value)


REFERENCES = [
    ["a cat sits on the mat", "the cat is on a mat"],
    ["a dog runs in the park", "one dog running through grass"],
    ["two birds on a wire", "birds sitting on a wire"],
]
CAPTIONS = ["a cat on the mat", "a dog runs through grass in the park", "a cat on a wire"]


def test_cider_gives_the_values_of_the_coco_caption_code():
    # Made with pycocoevalcap 1.2, Cider().compute_score.
    assert list(cider(dict(enumerate(CAPTIONS)), REFERENCES).values()) == pytest.approx(
        [3.23738315, 3.05895441, 2.83647835]
    )


def test_cider_agrees_with_the_coco_caption_code_where_that_is_installed():
    reference = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    rng, words = np.random.default_rng(0), np.array("a the red blue cat dog and two on in".split())  # noqa: SIM905
    truths = [[" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(3)] for _ in range(30)]
    said = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(30)]
    _, expected = reference.compute_score(dict(enumerate(truths)), {i: [text] for i, text in enumerate(said)})
    assert list(cider(dict(enumerate(said)), truths).values()) == pytest.approx(list(expected))


def test_cider_of_the_reference_itself_is_ten_and_of_other_words_nothing():
    truths = [["a red circle and a dog"], ["two blue stars"]]
    assert cider({0: "A red circle, and a dog.", 1: "green hearts"}, truths) == pytest.approx({0: 10.0, 1: 0.0})


def test_failed_samples_have_no_score_and_answers_in_order_have_theirs():
    for metric in METRICS:
        truth = ("yes", "dog") if metric != "cider" else ("yes",)
        found = score(metric, ["yes", None, "no"], [truth, truth, truth])
        assert found.shape == (3,) and np.isnan(found[1]) and not np.isnan(found[[0, 2]]).any()
