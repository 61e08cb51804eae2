"""Compiled layers: every stage of a prompt and decode are whole graphs, and few, that serve dense and pruned alike."""

import copy

import pytest
import torch

import foveate
import tiny
from contracts import METHODS, check_row, generate, reference
from foveate.pruning.compiled import has_compiled_forward

ROW = tiny.forms("llava-gqa")["one"][0]
LONGER = [tiny.Row(ROW.family, (*range(3, 3 + more), *ROW.ids), ROW.images) for more in (0, 1, 9)]


@pytest.fixture
def model():
    """Its decoder layers are compiled one by one; a break in one of their graphs is an error."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = copy.deepcopy(tiny.model("llava-gqa", "sdpa"))
    for layer in model.get_decoder().layers:
        layer.forward = torch.compile(layer.forward, backend="eager", fullgraph=True, isolate_recompiles=True)
    yield model
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def say(model, row: tiny.Row, method: str) -> None:
    """What a model answers is what the reference answers."""
    pruned = foveate.prune(model, METHODS[method])
    try:
        out = generate(model, tiny.batch(row), cache_implementation="static")
    finally:
        pruned.remove()
    check_row(out, 0, reference(row, method))


def test_every_stage_of_the_prompt_and_decode_compile_and_longer_prompts_find_their_graphs(model):
    seen = []
    for row in LONGER:
        say(model, row, "himap")
        seen.append(graphs())
    assert not torch._dynamo.utils.counters["graph_break"]
    read, filled = 2, 1  # HiMAP reads two layers, and the last one leaves keys and values only
    # once for the first prompt and once for all others; where nothing was compiled in the prompt, for decode alone
    assert seen[0] >= 2 * (tiny.LAYERS - read - filled)
    assert seen[1] <= 2 * seen[0] and seen[1] == seen[2]


def test_layers_behind_the_exit_of_visipruner_compile(model):
    method = foveate.VisiPruner(shallow=1, stages=("shallow", "deep"), exit=-1.0, exit_count=2)
    with foveate.prune(model, method) as pruned, torch.no_grad():
        model(**tiny.batch(ROW))
    (stage,) = pruned.trace.stages
    assert stage.layer == 4 and pruned.trace.tokens[-1] == [len(ROW.ids) - len(ROW.visual)]
    # layer 0 is edited, 2 and 3 are read, 4 would be and has begun when it is known: all others have a graph
    assert graphs() == tiny.LAYERS - 4


def test_graphs_of_layers_hold_no_hooks_and_serve_a_dense_model_as_well(model):
    before = [layer.forward for layer in model.get_decoder().layers]
    dense = reference(ROW, "dense")
    for _ in range(2):
        check_row(generate(model, tiny.batch(ROW), cache_implementation="static"), 0, dense)
        say(model, ROW, "vtw")
    assert [layer.forward for layer in model.get_decoder().layers] == before
    made = graphs()
    check_row(generate(model, tiny.batch(ROW), cache_implementation="static"), 0, dense)
    assert graphs() == made  # coming and going dropped none of them


def test_a_layer_that_is_read_has_its_compiled_forward_again_after_an_error(model):
    layers = model.get_decoder().layers
    handle = layers[5].register_forward_hook(lambda *_: 1 / 0)
    with foveate.prune(model, METHODS["himap"]), pytest.raises(ZeroDivisionError):
        model(**tiny.batch(ROW))
    handle.remove()
    assert all(has_compiled_forward(layer) for layer in layers)
    assert len({id(layer.self_attn.config) for layer in layers}) == 1


def test_a_dynamic_cache_will_do(model):
    with foveate.prune(model, METHODS["fastv"]), torch.no_grad():
        logits = model(**tiny.batch(ROW), logits_to_keep=1).logits
    assert graphs() == tiny.LAYERS - 1  # the last layer ran on one token, one other was read
    with foveate.prune(tiny.model("llava-gqa", "sdpa"), METHODS["fastv"]), torch.no_grad():
        plain = tiny.model("llava-gqa", "sdpa")(**tiny.batch(ROW), logits_to_keep=1).logits
    torch.testing.assert_close(logits, plain, atol=2e-5, rtol=0)
