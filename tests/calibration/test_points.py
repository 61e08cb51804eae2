"""What a calibration's report says of methods, and its picture."""

import math

import pytest
from PIL import Image

import foveate
from foveate.calibration.figures import together
from foveate.policy import Cut, Dense, Figure, Schedule
from foveate.report.calibration import words
from foveate.report.pareto import Mark, pareto


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Schedule((Cut(2, 0.5, "instruction"), Cut(4, foveate.Share(0.9)), foveate.VTW(7))),
         "instruction 0.5 before 2, last 0.9 of the score before 4, none from 7"),
        (foveate.FastV(3, 0.25), "fastv(layer=3, keep=0.25)"),
        (foveate.FastV(), "fastv(layer=2, keep=0.5, rows=last)"),
        (Dense(), "nothing is dropped"),
        (foveate.VisiPruner(shallow=2), "visipruner(shallow=2)"),
    ],
)  # fmt: skip
def test_a_method_is_told_in_a_line(method, told):
    assert words(method) == told


def test_speeds_of_kinds_are_mixed_by_their_times():
    fast, slow = Figure(2.0, 1.5, 2.5), Figure(1.0, 1.0, 1.0)
    assert together([fast, slow], [3, 1]) == Figure(4 / (3 / 2 + 1), 4 / (3 / 1.5 + 1), 4 / (3 / 2.5 + 1))


def test_the_picture_is_drawn_with_and_without_times(tmp_path):
    marks = [
        Mark("one for all", "chosen", 0.35, 0.7, (0.8, 0.7, 0.9)),
        Mark("at 50%", "front", 0.5, None, (0.9, 0.85, 0.95)),
        Mark("fastv, published", "published", 0.57, 0.8, (0.78, 0.7, 0.85)),
        Mark("vtw, published", "published", 0.55, 0.8, (math.nan, math.nan, math.nan)),
    ]
    for number, (some, tried) in enumerate([(marks, [(0.3, 0.5)]), (marks[1:2], [])]):
        path = tmp_path / f"{number}.png"
        pareto(some, tried, 0.35 if tried else None, path)
        assert Image.open(path).width > 1000
    assert not list(tmp_path.glob("*.part"))
