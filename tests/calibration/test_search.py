"""The search: budgets are kept, shapes are solved for them, VTW's own criterion gives the golden layers."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foveate
import golden_cases as golden
from checkpoints import LAYERS, load_lively
from foveate import flow
from foveate.calibration.data import common, kind_of
from foveate.calibration.search import DIALS, Budget, Fixed, Search, as_schedule, vtw_layer
from foveate.calibration.shares import fractions_of, shared, with_shares
from foveate.calibration.trials import Trials, name_of, scheduled_share, share, solve
from foveate.methods import METHODS
from foveate.policy import Cut, Schedule
from foveate.suite.journal import Journal
from foveate.suite.tasks import draw

SHAPE = {"stages": 2, "layer0": 1, "score0": "last", "power0": 1.0, "layer1": 2, "score1": "visual", "power1": 2.0}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_lively(tmp_path_factory.mktemp("llava"))


def trials_in(loaded, place) -> Trials:
    samples = draw(["existence", "count"], 4, 0)
    return Trials(*loaded, samples, Journal(place / "t.jsonl", {}), 3, lambda sample: kind_of(sample.question))


@pytest.fixture
def trials(loaded, tmp_path):
    return trials_in(loaded, tmp_path)


@pytest.mark.parametrize("name", golden.names("vtw_kl", "vtw_findk"))
def test_vtw_chooses_the_published_searchs_layer(name):
    config, state = golden.weights(name)
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="sdpa")
    model.load_state_dict(state)
    embeds = golden.embeddings(name)[None]
    visual = torch.zeros(1, embeds.shape[1], dtype=torch.bool)
    visual[0, golden.visual_positions(name)] = True
    batch = flow.Batch({"inputs_embeds": embeds}, [[0]], visual=visual)
    for example in golden.CASES[name].get("checks", {}).get("k_star_examples", []):
        layer, curve = vtw_layer(model.eval(), [batch], eta=example["eta"], first=5)
        assert layer == example["k_star"]
        np.testing.assert_allclose(
            np.array(curve)[golden.tensors(name)["k_values"]], golden.tensors(name)["kl"], **golden.KL
        )


def test_some_golden_case_names_a_layer():
    cases = [golden.CASES[name].get("checks", {}).get("k_star_examples", []) for name in golden.names("vtw_findk")]
    assert sum(map(len, cases)) > 0


@pytest.mark.parametrize("family", [*DIALS])
def test_a_dial_is_turned_as_far_as_the_budget_goes(trials, family):
    search = Search(trials, Budget("flops", 0.6), 0, lambda: None)
    shape = {"fastv": {"layer": 2}, "himap": {"layer1": 1, "later": 2, "power": 2.0}, "schedule": SHAPE | {"leave": 2}}
    method = search.fitted(DIALS[family](Fixed(shape[family]), LAYERS, 3))
    assert 0.5 < search.cost_of(method) <= 0.6
    assert share(trials.run(method), trials.run(None)) == pytest.approx(search.cost_of(method), rel=1e-6)


@pytest.mark.parametrize(
    ("family", "shape"), [("fastv", {"layer": 2}), ("himap", {"layer1": 1, "later": 2, "power": 2.0})]
)
def test_a_free_schedule_begins_where_a_method_is(trials, family, shape):
    search = Search(trials, Budget("flops", 0.6), 0, lambda: None)
    search.fixed(family, shape)
    (candidate,) = search.found.values()
    start = as_schedule(candidate)
    assert start is not None
    same = DIALS["schedule"](Fixed(start | {"leave": LAYERS}), LAYERS, 3)
    for t in (0.2, 0.7):
        assert same(t).schedule(LAYERS, 100) == DIALS[family](Fixed(shape), LAYERS, 3)(t).schedule(LAYERS, 100)


def test_visual_tokens_are_a_budget_too(trials):
    search = Search(trials, Budget("visual", 0.4), 0, lambda: None)
    method = search.fitted(lambda t: foveate.FastV(1, t))
    assert share(trials.run(method), trials.run(None), "visual") == pytest.approx(search.cost_of(method), rel=1e-6)
    assert 0.35 < search.cost_of(method) <= 0.4


def test_what_costs_too_much_even_with_nothing_kept_is_refused(trials):
    search = Search(trials, Budget("flops", 0.05), 0, lambda: None)
    with pytest.raises(ValueError, match="costs at least"):
        search.fitted(lambda t: foveate.FastV(4, t))


@pytest.mark.parametrize("family", ["fastv", "himap", "vtw", "visipruner", "schedule"])
def test_every_family_is_searched(trials, family):
    search = Search(trials, Budget("flops", 0.6), 0, lambda: None)
    search.family(family, 4)
    assert search.found
    for candidate in search.fitting:
        assert candidate.cost <= 0.603 and 0 <= candidate.agreement <= 1
    losses = [candidate.loss for candidate in search.fitting]
    assert losses == sorted(losses)


def test_a_search_that_goes_on_runs_nothing_twice_and_finds_the_same(loaded, tmp_path, monkeypatch):
    first = Search(trials_in(loaded, tmp_path), Budget("flops", 0.6), 3, lambda: None)
    first.family("schedule", 6)
    lines = (tmp_path / "t.jsonl").read_bytes().splitlines(keepends=True)
    again = Search(trials_in(loaded, tmp_path), Budget("flops", 0.6), 3, lambda: None)
    monkeypatch.setattr("foveate.calibration.trials.Asked", None)  # whoever runs a model fails
    again.family("schedule", 6)
    assert again.found == first.found
    monkeypatch.undo()
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])  # killed half-way
    third = Search(trials_in(loaded, tmp_path), Budget("flops", 0.6), 3, lambda: None)
    third.family("schedule", 6)
    assert third.found == first.found


def test_shares_cost_what_the_fractions_did(trials):
    search = Search(trials, Budget("flops", 0.6), 0, lambda: None)
    fixed = search.fitted(lambda t: foveate.FastV(1, t))
    cost = search.cost_of(fixed)
    adaptive = with_shares(fixed, cost, search)
    assert isinstance(adaptive, foveate.FastV) and isinstance(adaptive.keep, foveate.Share)
    assert cost - 0.06 < share(trials.run(adaptive), trials.run(None)) <= cost
    spread = [{o.visual for o in trials.run(shared(fixed, p)).values()} for p in (0.3, 0.6, 0.9)]
    assert max(map(len, spread)) > 1  # another number for other pictures


def test_fractions_of_a_schedule_become_shares_in_every_stage():
    method = Schedule((Cut(1, 0.5), foveate.HiMAP(2, 0.5, 3, 0.3), foveate.Uniform(4, 0.5), foveate.VTW(5)))
    share_ = foveate.Share(0.7)
    assert fractions_of(method) == ["keep", "keep1", "keep2"]
    assert shared(method, 0.7) == Schedule(
        (Cut(1, share_), foveate.HiMAP(2, share_, 3, share_), foveate.Uniform(4, 0.5), foveate.VTW(5))
    )


def test_the_scheduled_cost_is_the_mean_over_prompts(trials):
    items = [trials.item(sample) for sample in trials.samples]
    method = foveate.HiMAP(1, 0.5, 3, 0.25)
    told = scheduled_share(method, items, trials.model.config, "flops")
    assert told == pytest.approx(share(trials.run(method), trials.run(None)), rel=1e-9)


def test_a_dial_is_tried_no_more_often_than_allowed():
    tried = []
    found = solve(lambda t: foveate.FastV(1, t), 0.3, lambda m: tried.append(m.keep) or m.keep, steps=5)
    assert len(tried) == 7 and 0.3 - 2**-5 <= found.keep <= 0.3


def test_a_dial_that_can_be_full_is_left_full():
    assert solve(lambda t: foveate.FastV(1, t), 1.0, lambda method: float(method.keep)).keep == 1.0


def test_batches_are_of_one_kind_and_task_and_take_turns(trials):
    for batch in trials.batches:
        assert len({(trials.kind(s), s.task) for s in batch}) == 1 and len(batch) <= 3
    assert [batch[0].task for batch in trials.rounds[0]] == ["existence", "count"]
    assert sorted(s.name for b in trials.batches for s in b) == sorted(s.name for s in trials.samples)
    assert {s.task for s in trials.of("count").samples} == {"count"}


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Is there a dog?", "yes-no"),
        ("how many cats are there", "count"),
        ("what does the sign say?", "reading"),
        ("describe the picture.", "caption"),
        ("where is the cup?", "place"),
        ("is the cup left of the plate?", "place"),
        ("which one do you see? a) cup b) plate", "choice"),
        ("what colour is the text?", "short"),
        ("the cross has which color?", "short"),
        ("hello", "default"),
        ("", "default"),
    ],
)
def test_a_question_tells_its_kind(question, kind):
    assert kind_of(question) == kind
    assert kind_of(question, among=()) == "default"


def test_kinds_that_are_rare_are_none():
    assert common(["is it?"] * 5 + ["where?"] * 2, 3) == ["yes-no"]


def test_names_tell_methods_apart():
    assert len({name_of(m) for m in (None, *(method() for method in METHODS.values()))}) == len(METHODS) + 1
