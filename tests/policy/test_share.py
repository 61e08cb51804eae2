"""The smallest set that carries a share of the score, against one that is found by trying."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate
from foveate.methods.share import carrying

scores = st.lists(st.integers(0, 9), min_size=1, max_size=6)  # whole numbers: no sum is rounded


def smallest(score: list[int], share: float) -> int:
    """How many tokens it takes at least, found by trying all sets."""
    sets = (few for n in range(1, len(score) + 1) for few in combinations(score, n))
    return next(len(few) for few in sets if sum(few) >= share * sum(score))


@given(score=scores, others=scores, share=st.sampled_from([0.125, 0.25, 0.5, 0.75, 0.875, 1.0]))
def test_it_is_the_smallest_and_of_the_highest(score, others, share):
    row = torch.tensor([[*score, *others]], dtype=torch.float32)  # (1, M)
    among = torch.tensor([[True] * len(score) + [False] * len(others)])
    kept = carrying(row, among, share)[0].tolist()
    assert not any(kept[len(score) :])
    chosen = [x for x, stays in zip(score, kept, strict=False) if stays]
    left = [x for x, stays in zip(score, kept, strict=False) if not stays]
    if share == 1.0 or sum(score) == 0:
        assert chosen == score  # everything, and all that is alike
    else:
        assert len(chosen) == smallest(score, share)
        assert sum(chosen) >= share * sum(score) and min(chosen) >= max(left, default=0)


def test_rows_of_a_batch_keep_as_many_as_each_of_them_needs():
    score = torch.tensor([[9.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 5.0, torch.nan, 5.0]])
    among = torch.ones(3, 4, dtype=torch.bool)
    assert carrying(score, among, 0.75).sum(1).tolist() == [1, 3, 2]
    assert carrying(score, among, 0.75)[2].tolist() == [False, True, False, True]


@pytest.mark.parametrize("share", [0, 0.0, -0.5, 1.01, True, "0.5", float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        foveate.Share(share)
