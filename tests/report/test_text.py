"""Numbers in words."""

import pytest

from foveate.report.text import duration, layer_ranges, paired_ratio, spread


def test_layers_of_equal_counts_are_joined():
    assert layer_ranges([9, 9, 5, 5, 5, 1]).splitlines() == ["0-1: 9", "2-4: 5", "5: 1"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0123, "12.3 ms"), (0.5, "500 ms"), (1.5, "1.50 s"), (0.00123, "1.23 ms")]
)
def test_a_duration_has_three_figures(seconds, words):
    assert duration(seconds) == words


def test_the_ratio_is_of_pairs_not_of_medians():
    # Two slow pairs and one fast one: the machine was busy, the ratio was two all along.
    assert paired_ratio([2.0, 20.0, 8.0], [1.0, 10.0, 4.0]) == (2.0, 2.0, 2.0)
    assert spread(paired_ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])) == "3.00x as fast (2.00-4.00)"
