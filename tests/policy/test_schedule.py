"""A free schedule does at each stage what the method of that stage does alone."""

from itertools import pairwise

import pytest
import torch

import foveate
import tiny
from contracts import STEPS, given
from foveate.policy import Cut, Dense, Schedule
from reference import rows, rules


def kept(model, batch, method):
    with foveate.prune(model, method) as pruned, torch.no_grad():
        model.generate(**batch, max_new_tokens=2, do_sample=False)
    return [(stage.layer, [row.tolist() for row in stage.kept]) for stage in pruned.trace.stages], pruned.trace.flops


@pytest.fixture
def ragged():
    return tiny.model("qwen", "sdpa"), tiny.batch(*tiny.forms("qwen")["ragged"])


@pytest.mark.parametrize(
    ("schedule", "method"),
    [
        (Cut(2, 0.5, "last"), foveate.FastV(2, 0.5)),
        (Cut(3, 0.4, "instruction"), foveate.HiMAP(3, 0.4, 7, 1.0)),
        (Schedule((Cut(2, 0.5, "instruction"), Cut(5, 0.25, "visual"))), foveate.HiMAP(2, 0.5, 5, 0.25)),
        (Schedule((foveate.VTW(4),)), foveate.VTW(4)),
        (Schedule((foveate.HiMAP(1, 0.5, 3, 0.5),)), foveate.HiMAP(1, 0.5, 3, 0.5)),
        (Schedule((foveate.VisiPruner(shallow=1, fire=0.91),)), foveate.VisiPruner(shallow=1, fire=0.91)),
    ],
    ids=str,
)
def test_a_stage_is_its_method(ragged, schedule, method):
    stages, flops = kept(*ragged, schedule)
    other, other_flops = kept(*ragged, method)
    last = [stage for stage in other if stage[0] <= 6]  # a last cut that keeps all is none
    assert stages == last
    if not isinstance(method, foveate.VisiPruner):
        assert flops <= other_flops


def test_influence_keeps_the_tokens_that_move_the_output(ragged):
    model, _ = ragged
    row = tiny.forms("qwen")["one"][0]
    (_, [columns]), *_ = kept(model, tiny.batch(row), Cut(3, 5, "influence"))[0]
    rule = rules.VisiPruner(stages=("middle",), shallow=1, fire=1.1, influence=1e-9)
    result = rows.greedy(given(row), rule, STEPS)
    norms = result.rule.norms[2]
    assert columns == sorted(sorted(norms, key=lambda i: -norms[i])[:5])


def test_stages_decide_on_what_earlier_ones_left(ragged):
    stages, _ = kept(*ragged, Schedule((Cut(1, 0.5), Cut(3, 0.5, "visual"), foveate.VTW(6))))
    assert [layer for layer, _ in stages] == [1, 3, 6]
    for (_, before), (_, after) in pairwise(stages):
        assert all(set(few) <= set(many) for few, many in zip(after, before, strict=True))
    assert stages[-1][1] == [[], [], []]


def test_a_schedule_says_what_it_will_keep_and_score():
    method = Schedule((Cut(2, 0.5, "instruction"), Cut(4, 0.5, "visual"), Cut(5, 0.5, "influence"), foveate.VTW(6)))
    assert method.schedule(8, 100) == [(2, 50), (4, 25), (5, 12), (6, 0)]
    assert method.scored([100, 100, 50, 50, 25, 12, 0, 0], 9, 120) == {1: 9, 3: 50, 4: 3}
    assert method.reads and not Schedule((foveate.VTW(3),)).reads


def test_dense_drops_nothing(ragged):
    assert kept(*ragged, Dense())[0] == []


@pytest.mark.parametrize("parts", [(), ("fastv",), (Schedule((foveate.VTW(2),)),)])
def test_what_is_no_schedule_is_refused(parts):
    with pytest.raises(ValueError, match="schedule"):
        Schedule(parts)


def test_stages_out_of_order_are_refused(ragged):
    with pytest.raises(ValueError, match=r"\[4, 2\].*have to ascend"):
        foveate.prune(ragged[0], Schedule((Cut(4, 0.5), Cut(2, 0.5))))
    with pytest.raises(ValueError, match="score='mood'"):
        Cut(2, 0.5, "mood")
