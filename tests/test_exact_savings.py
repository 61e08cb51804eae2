"""What is not computed because its result is known or wanted by nobody: the outputs are the same without it."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, StaticCache

import foveate
import tiny
from contracts import METHODS, generate
from foveate.pruning import attention, edits, last
from foveate.pruning import static as static_caches

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from waits import Waits

CUTS = ("fastv", "himap", "vtw", "visipruner", "fastv last layer", "random")

every_method = pytest.mark.parametrize("method", CUTS)
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
every_attention = pytest.mark.parametrize("attention", ("sdpa", "eager"))

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def widths(monkeypatch):
    """How many tokens the FFN of each layer was given, in the order of the layers; no hook tells the engine of it."""
    seen = []
    activation = type(tiny.model("llava-gqa", "sdpa").get_decoder().layers[0].mlp.act_fn)
    monkeypatch.setattr(activation, "forward", lambda self, x: seen.append(x.shape[1]) or torch.nn.functional.silu(x))
    return seen


# ---- the last layer


@pytest.mark.parametrize("cached", (True, False), ids=("cache", "no cache"))
@pytest.mark.parametrize("form", ("one", "ragged"))
@every_method
@every_attention
@every_family
def test_the_last_layer_for_the_last_token_alone_puts_out_the_same(family, attention, method, form, cached):
    model, inputs = tiny.model(family, attention), tiny.batch(*tiny.forms(family)[form])
    with foveate.prune(model, METHODS[method]) as pruned:
        alone = model(**inputs, logits_to_keep=1, use_cache=cached)
        spared = pruned.trace.spared
        whole = model(**inputs, use_cache=cached)
        assert pruned.trace.spared == 0
    assert bool(spared) == bool(pruned.trace.stages)
    torch.testing.assert_close(alone.logits[:, -1], whole.logits[:, -1], atol=2e-5, rtol=0)
    if cached:
        for one, other in zip(alone.past_key_values.layers, whole.past_key_values.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys, atol=2e-5, rtol=0)
            torch.testing.assert_close(one.values, other.values, atol=2e-5, rtol=0)


def test_one_token_runs_through_the_last_layer_of_a_pruned_prompt_and_all_through_that_of_a_dense_one(widths):
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    text = len(row.ids) - len(row.visual)
    with foveate.prune(model, METHODS["vtw"]):
        model(**tiny.batch(row), logits_to_keep=1)
        assert widths == [len(row.ids)] * 4 + [text] * 3 + [1]
    widths.clear()
    with foveate.prune(model, foveate.Uniform(layer=2, keep=1.0)):
        model(**tiny.batch(row), logits_to_keep=1)
        assert widths == [len(row.ids)] * tiny.LAYERS


WHOLE = {
    "all logits": {},
    "no number of logits": {"logits_to_keep": torch.tensor([3])},
    "two logits": {"logits_to_keep": 2},
    "hidden states": {"logits_to_keep": 1, "output_hidden_states": True},
}


@pytest.mark.parametrize("call", WHOLE)
def test_whoever_asks_for_more_than_the_last_token_gets_it(call):
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    with foveate.prune(model, METHODS["vtw"]) as pruned:
        out = model(**tiny.batch(row), **WHOLE[call])
        assert pruned.trace.spared == 0
    if call == "hidden states":
        assert out.hidden_states[-1].shape[1] == len(row.ids) - len(row.visual)


def test_attentions_of_the_last_layer_are_whole():
    model, (row,) = tiny.model("llava-gqa", "eager"), tiny.forms("llava-gqa")["one"]
    with foveate.prune(model, METHODS["vtw"]):
        out = model(**tiny.batch(row), logits_to_keep=1, output_attentions=True)
    text = len(row.ids) - len(row.visual)
    assert out.attentions[-1].shape[-2:] == (text, text)


@pytest.mark.parametrize("place", ("layers.7", "layers.7.mlp", "norm", ""))
def test_a_hook_of_the_users_sees_the_whole_last_layer(place):
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    seen = []
    module = model.get_decoder().get_submodule(place)
    hook = module.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with foveate.prune(model, METHODS["vtw"]):
            model(**tiny.batch(row), logits_to_keep=1)
    finally:
        hook.remove()
    assert getattr(seen[0], "last_hidden_state", seen[0]).shape[1] == len(row.ids) - len(row.visual)


def test_caches_that_do_not_give_back_what_they_were_given_keep_the_last_layer_whole():
    assert last.holds_exactly(None)
    config = tiny.model("llava-gqa", "sdpa").config.get_text_config()
    assert last.holds_exactly(StaticCache(config=config, max_cache_len=8))
    assert not last.holds_exactly(object.__new__(QuantizedCache))
    assert not last.holds_exactly(StaticCache(config=config, max_cache_len=8, offloading=True))


def test_a_model_in_training_mode_computes_its_last_layer():
    model, (row,) = copy.deepcopy(tiny.model("llava-gqa", "sdpa")).train(), tiny.forms("llava-gqa")["one"]
    with foveate.prune(model, METHODS["vtw"]) as pruned:
        model(**tiny.batch(row), logits_to_keep=1)
        assert pruned.trace.spared == 0


# ---- rows that are read in parts


@pytest.mark.parametrize("form", ("one", "ragged"))
@pytest.mark.parametrize("method", ("fastv all rows", "himap", "himap sends", "himap normalised"))
@every_family
def test_rows_read_one_by_one_decide_the_same(family, method, form, monkeypatch):
    model, inputs = tiny.model(family, "sdpa"), tiny.batch(*tiny.forms(family)[form])
    with foveate.prune(model, METHODS[method]) as pruned:
        at_once, trace = generate(model, inputs), pruned.trace
        monkeypatch.setattr(attention, "CPU_BYTES", 1)
        monkeypatch.setattr(attention, "LEAST_ROWS", 1)
        one_by_one = generate(model, inputs)
    assert trace.flops == pruned.trace.flops
    for stage, other in zip(trace.stages, pruned.trace.stages, strict=True):
        assert [kept.tolist() for kept in stage.kept] == [kept.tolist() for kept in other.kept]
    assert torch.equal(at_once.logits[-1], one_by_one.logits[-1])


# ---- edited attention, by bands of rows


@pytest.mark.parametrize("form", ("one", "equal"))
@pytest.mark.parametrize(
    "method",
    ("visipruner shallow", "visipruner no self-attention", "visipruner halve", "visipruner", "visipruner paper"),
)
@every_family
def test_edits_by_bands_of_rows_and_row_by_row_are_the_same(family, method, form, monkeypatch):
    model, inputs = tiny.model(family, "sdpa"), tiny.batch(*tiny.forms(family)[form])
    if form == "equal":
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    with foveate.prune(model, METHODS[method]):
        by_bands = generate(model, inputs)
        monkeypatch.setattr(edits, "MAX_BANDS", 0)
        row_by_row = generate(model, inputs)
    for one, other in zip(by_bands.logits, row_by_row.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_a_prompt_with_one_image_has_two_bands():
    visual = torch.tensor([[False] * 3 + [True] * 4 + [False] * 2])
    text = torch.tensor([[False] * 7 + [True] * 2])
    first_layer = [edits.Edit(visual, visual), edits.Edit(text, visual, into=torch.tensor([3]))]
    assert edits.Plan.of(first_layer).bands == [(0, 7, 0), (7, 9, 1)]  # the three before it see none of the image
    assert edits.Plan.of([edits.Edit(text, visual)]).bands == [(0, 7, None), (7, 9, 0)]
    assert edits.Plan.of([edits.Edit(text | visual, visual)]).bands == [(0, 9, 0)]
    ragged = torch.cat([text, torch.tensor([[False] * 8 + [True]])])
    assert edits.Plan.of([edits.Edit(ragged, ragged)]) == edits.Plan(None, 8, [[2, 1]])


# ---- static caches


def static(model, length: int) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


def lengths(cache) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


@pytest.mark.parametrize("step", (1, 8, 64))
@pytest.mark.parametrize("form", ("one", "ragged"))
@pytest.mark.parametrize("method", ("himap", "vtw", "visipruner", "fastv last layer"))
@every_attention
def test_cut_layers_of_a_static_cache_are_as_long_as_they_have_to_be(attention, method, form, step, monkeypatch):
    monkeypatch.setattr(static_caches, "STEP", step)
    model, batch = tiny.model("llava-gqa", attention), tiny.forms("llava-gqa")[form]
    inputs = tiny.batch(*batch)
    length = inputs["input_ids"].shape[1]
    cache = static(model, length + 7)
    with foveate.prune(model, METHODS[method]) as pruned:
        out = generate(model, inputs, past_key_values=cache, max_new_tokens=8)
        dynamic = generate(model, inputs, max_new_tokens=8)
    for one, other in zip(out.logits, dynamic.logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    widest = [max(row) for row in pruned.trace.tokens]
    cut = min((stage.layer for stage in pruned.trace.stages), default=tiny.LAYERS)
    fewer = [0 if layer < cut else (length - n) // step * step for layer, n in enumerate(widest)]
    assert lengths(cache) == [length + 7 - n for n in fewer]
    assert step == 64 or any(fewer)


def test_a_static_cache_that_is_reset_has_its_own_lengths_again_and_knows_no_prompt(monkeypatch):
    monkeypatch.setattr(static_caches, "STEP", 1)
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")["one"])
    cache, before = static(model, 60), set(vars(static(model, 60)))
    with foveate.prune(model, METHODS["vtw"]):
        generate(model, inputs, past_key_values=cache)
    assert len(set(lengths(cache))) == 2
    twin = copy.deepcopy(cache)
    twin.reset()
    assert len(set(lengths(cache))) == 2  # a copy is a cache of its own
    for emptied in (cache, twin):
        emptied.reset()
        assert set(vars(emptied)) - {"_is_user_defined"} == before
        dense = generate(model, inputs, past_key_values=emptied)
        assert lengths(emptied) == [60] * tiny.LAYERS
        assert torch.equal(dense.logits[-1], generate(model, inputs, past_key_values=static(model, 60)).logits[-1])


def test_a_static_cache_whose_layers_were_emptied_one_by_one_is_found_to_be_empty_by_the_next_prompt():
    model, forms = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")
    cache = static(model, 80)
    with foveate.prune(model, METHODS["vtw"]):
        generate(model, tiny.batch(*forms["one"]), past_key_values=cache)
        for layer in cache.layers:
            layer.reset()
        again = generate(model, tiny.batch(*forms["one"]), past_key_values=cache)
        fresh = generate(model, tiny.batch(*forms["one"]))
    torch.testing.assert_close(again.logits[-1], fresh.logits[-1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", CUTS)
def test_no_layer_is_wider_than_its_longest_row(method):
    """What fills up shorter rows, and padding, takes no column more than it has to."""
    model, batch = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["ragged"]
    with foveate.prune(model, METHODS[method]) as pruned:
        cache = model(**tiny.batch(*batch, spare=9), logits_to_keep=1).past_key_values
    cut = pruned.trace.stages[0].layer
    assert lengths(cache)[cut:] == [max(row) for row in pruned.trace.tokens][cut:]


# ---- waits for the device


@pytest.mark.parametrize("form", ("one", "equal", "ragged"))
@pytest.mark.parametrize("method", ("fastv", "fastv all rows", "himap", "himap sends", "vtw", "random", "uniform"))
@every_family
def test_the_host_waits_once_for_a_prompt_and_never_after_it(family, method, form):
    model, inputs = tiny.model(family, "sdpa"), tiny.batch(*tiny.forms(family)[form])
    with foveate.prune(model, METHODS[method]):
        for cache in (DynamicCache(), static(model, 90)):
            waits = Waits(["foveate/pruning/", "foveate/methods/"])
            with waits:
                out = model(**inputs, logits_to_keep=1, past_key_values=cache)
            assert [name for _, name in waits.found] == ["cpu"], waits.found
            token = {"input_ids": inputs["input_ids"][:, :1], "past_key_values": out.past_key_values}
            ones = inputs["attention_mask"].new_ones(len(token["input_ids"]), 1)
            longer = torch.cat([inputs["attention_mask"], ones], dim=1)
            with waits:
                model(**token, attention_mask=longer, position_ids=longer.sum(1)[:, None] - 1)
            assert len(waits.found) == 1, waits.found


@pytest.mark.parametrize("form", ("one", "ragged"))
def test_visipruner_waits_once_for_each_layer_that_it_looks_at_and_not_in_shallow_ones(form):
    """Whether a layer is the filter is known when it has run, and not before."""
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")[form])
    for method, looks in (("visipruner shallow", 0), ("visipruner", tiny.LAYERS - 3)):
        with foveate.prune(model, METHODS[method]), Waits(["foveate/pruning/", "foveate/methods/"]) as waits:
            model(**inputs, logits_to_keep=1)
        assert waits.found[0][1] == "cpu"
        assert len(waits.found) <= 1 + looks


def test_a_wait_is_seen():
    with Waits([__file__]) as waits:
        x = torch.arange(4.0, device="cpu")
        _ = x[x > 1], x.sum().item(), bool(x[0] > 0), x.cpu().tolist(), torch.zeros(3).tolist()
    assert [name for _, name in waits.found] == ["__getitem__", "item", "__bool__", "cpu"]
