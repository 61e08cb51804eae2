"""A trial on recorded layers is the pruned model's own answer: the same tokens, the same cost."""

import pytest
import torch

import foveate
from checkpoints import EOS, LAYERS, load_lively
from foveate.calibration.replay import Asked, signals, until_end
from foveate.measure import generate
from foveate.policy import Cut, Dense, Schedule
from foveate.suite import runner
from foveate.suite.tasks import draw

METHODS = {
    "dense": Dense(),
    "everything": foveate.FastV(3, 1.0),
    "fastv": foveate.FastV(2, 0.25),
    "late": foveate.FastV(LAYERS - 1, 0.1),
    "himap": foveate.HiMAP(1, 0.5, 3, 0.25),
    "vtw": foveate.VTW(3),
    "visipruner": foveate.VisiPruner(shallow=1, fire=0.99, influence=0.05),
    "share": foveate.HiMAP(2, foveate.Share(0.8), 4, foveate.Share(0.5)),
    "schedule": Schedule((Cut(1, 0.7, "instruction"), Cut(3, 0.5, "visual"), foveate.VTW(5))),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_lively(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def items(loaded):
    return [runner.item_of(*loaded, sample) for sample in draw(["existence", "choice"], 3, 0)]


@pytest.fixture(scope="module")
def asked(loaded, items):
    return Asked(*loaded, items, depth=LAYERS - 1)


def generated(loaded, asked, method):
    """Token ids of the greedy answers, each up to its end, and the outputs of the suite's runner."""
    model, (_, length) = loaded[0], asked.inputs["input_ids"].shape
    with foveate.prune(model, method):
        ids = generate(model, asked.inputs, 16).sequences[:, length:]
    said = [row[ends].tolist() for row, ends in zip(ids, until_end(ids, {EOS}), strict=True)]
    return said, runner.answer(*loaded, asked.items, method, {})


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_tells_what_generate_would_say_and_cost(loaded, asked, name):
    said, outputs = generated(loaded, asked, METHODS[name])
    full, dense = generated(loaded, asked, Dense())
    for row, outcome in enumerate(asked.trial(METHODS[name])):
        assert outcome.same == (said[row] == full[row])
        assert outcome.whole == outputs[row].flops and outcome.visual == pytest.approx(outputs[row].visual)
        best = outputs[row].first.topk(2).values
        assert outcome.margin == pytest.approx(float(best[0] - best[1]), abs=1e-3)
        if len(full[row]) == 1:  # then the KL over the answer is that of its first token
            kl = torch.nn.functional.kl_div(outputs[row].first, dense[row].first, log_target=True, reduction="sum")
            assert outcome.kl == pytest.approx(max(0.0, kl.item()), abs=1e-4)


def test_some_answers_change_and_some_do_not(asked):
    found = [outcome.same for name in METHODS for outcome in asked.trial(METHODS[name])]
    assert len(METHODS) < sum(found) < len(found)


def test_what_changes_nothing_is_the_same_to_the_bit_that_counts(asked):
    for name in ("dense", "everything"):
        for outcome, dense in zip(asked.trial(METHODS[name]), asked.dense, strict=True):
            assert outcome.same and outcome.kl < 1e-6 and dense.again == 0
            assert outcome.margin == pytest.approx(dense.margin, abs=1e-4)


def test_layers_before_the_first_read_are_not_run(loaded, asked):
    ran = []
    layers = loaded[0].base_model.language_model.layers
    hooks = [m.self_attn.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, m in enumerate(layers)]
    asked.trial(foveate.FastV(3, 0.5))
    for hook in hooks:
        hook.remove()
    prompt = ran[: LAYERS - 2]
    assert prompt == list(range(2, LAYERS))
    assert all("forward" not in vars(layer) for layer in layers)


def test_running_again_costs_the_layers_from_the_first_cut_on(loaded, items, asked):
    (outcome, *_) = asked.trial(foveate.FastV(2, 0.25))
    dense = foveate.cost.prefill(loaded[0].config, [items[0].length] * LAYERS, images=0)
    assert outcome.again == dense.decoder * (LAYERS - 2) // LAYERS + dense.head


def test_an_answer_ends_with_its_end():
    answers = torch.tensor([[5, 2, 0, 0], [5, 6, 7, 2], [2, 2, 2, 2]])
    assert until_end(answers, {2}).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_margin_and_entropy_are_those_of_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    margin, entropy = signals(logits.log_softmax(-1))
    assert margin.tolist() == pytest.approx([2.0, 0.0], abs=1e-6)
    assert entropy[1].item() == pytest.approx(torch.tensor(3.0).log().item())
