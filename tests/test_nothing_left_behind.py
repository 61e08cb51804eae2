"""After `prune` the model is what it was: hooks, configs, attributes, transformers' registries, and outputs."""

import copy
import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import foveate
import tiny
from contracts import ATOL, FEW, METHODS, check_row, generate, reference
from foveate.pruning import families
from foveate.pruning.tap import Tap

every_attention = pytest.mark.parametrize("attention", ("sdpa", "eager"))
two_families = pytest.mark.parametrize("family", ("llava-gqa", "qwen"))
few_methods = pytest.mark.parametrize("method", FEW)
FREE = ("rope_deltas",)  # Qwen's own memory of the last prompt, which any generate() writes


def snapshot(model) -> dict[str, object]:
    """Everything about a model that a careless library could leave changed, in a form that compares by identity."""
    seen: dict[str, object] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in FREE:
                continue
            key = f"{name}.{attribute}"
            seen[key] = id(value)
            if isinstance(value, dict):  # hooks of every kind, buffers, parameters, submodules
                seen[f"{key}[]"] = [(k, id(v)) for k, v in value.items()]
        if hasattr(module, "config"):
            seen[f"{name}.config of"] = id(module.config)
            seen[f"{name}.config values"] = (module.config._attn_implementation, str(vars(module.config)))
        for method in ("forward", "__call__", "generate", "get_decoder", "prepare_inputs_for_generation"):
            seen[f"{name}.{method}"] = getattr(getattr(module, method, None), "__func__", None)
        source = sys.modules[type(module).__module__]
        seen[f"module {source.__name__}"] = [(k, id(v)) for k, v in sorted(vars(source).items()) if callable(v)]
    seen["attention"] = [dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_ATTENTION_FUNCTIONS._local_mapping)]
    seen["masks"] = [dict(ALL_MASK_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping)]
    seen["generation config"] = model.generation_config.to_dict()
    torch_hooks = vars(torch.nn.modules.module)
    seen["global hooks"] = [
        (k, list(v)) for k, v in torch_hooks.items() if k.startswith("_global") and isinstance(v, dict)
    ]
    return seen


@contextmanager
def unchanged(model, inputs):
    """The body leaves no trace on the model, and the model answers bit for bit as before."""
    before_out = generate(model, inputs)  # also lets transformers settle what it caches on first use
    before = snapshot(model)
    yield
    after = snapshot(model)
    assert set(after) == set(before)
    for key, value in before.items():
        assert after[key] == value, key
    after_out = generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(after_out.logits, before_out.logits, strict=True))


@few_methods
@every_attention
@two_families
def test_nothing_is_left_after_leaving(family, attention, method, registries_before):
    model, inputs = tiny.model(family, attention), tiny.batch(*tiny.forms(family)["ragged"])
    with unchanged(model, inputs):
        with foveate.prune(model, METHODS[method]):
            inside = snapshot(model)
            generate(model, inputs)
        assert inside != snapshot(model)  # the snapshot can see what a pruner does to a model
    assert registries_before == (dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS))


def raising(error):
    def stop(*args, **kwargs):
        raise error

    return stop


def from_a_layer(model, inputs, error):
    """In the middle of the prefill, behind layers that are read and cut."""
    hook = model.get_decoder().layers[3].mlp.register_forward_pre_hook(raising(error))
    try:
        generate(model, inputs)
    finally:
        hook.remove()


def from_the_attention_that_is_read(model, inputs, error):
    hook = model.get_decoder().layers[1].self_attn.o_proj.register_forward_pre_hook(raising(error))
    try:
        generate(model, inputs)
    finally:
        hook.remove()


def from_a_stopping_criterion(model, inputs, error):
    generate(model, inputs, stopping_criteria=StoppingCriteriaList([raising(error)]))


def from_a_logits_processor(model, inputs, error):
    generate(model, inputs, logits_processor=LogitsProcessorList([raising(error)]))


PLACES = (from_a_layer, from_the_attention_that_is_read, from_a_stopping_criterion, from_a_logits_processor)


@pytest.mark.parametrize("error", (RuntimeError, KeyboardInterrupt), ids=lambda e: e.__name__)
@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
@few_methods
@every_attention
def test_nothing_is_left_after_an_exception_inside_generate(attention, method, place, error):
    model, inputs = tiny.model("llava-gqa", attention), tiny.batch(*tiny.forms("llava-gqa")["ragged"])
    with unchanged(model, inputs), pytest.raises(error), foveate.prune(model, METHODS[method]):
        place(model, inputs, error("from the test"))


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
@few_methods
@every_attention
def test_pruning_goes_on_rightly_after_an_exception_inside_generate(attention, method, place):
    model, forms = tiny.model("llava-gqa", attention), tiny.forms("llava-gqa")
    with foveate.prune(model, METHODS[method]):
        with pytest.raises(KeyboardInterrupt):
            place(model, tiny.batch(*forms["ragged"]), KeyboardInterrupt())
        out = generate(model, tiny.batch(*forms["left padding"]))
    for b, row in enumerate(forms["left padding"]):
        check_row(out, b, reference(row, method))


@pytest.mark.parametrize("call", (generate, lambda model, inputs: model(**inputs)), ids=("generate", "forward"))
@pytest.mark.parametrize("error", (RuntimeError, KeyboardInterrupt), ids=lambda e: e.__name__)
def test_an_exception_in_one_thread_does_not_stop_another(error, call):
    """A prompt that is being read may hold something that other threads wait for; a broken one must let go of it."""
    (row,) = tiny.forms("llava-gqa")["one"]
    model = copy.deepcopy(tiny.model("llava-gqa", "sdpa"))  # its own: a thread that waits may outlive this test
    with foveate.prune(model, METHODS["himap"]):
        hook = model.get_decoder().layers[3].mlp.register_forward_pre_hook(raising(error("from the test")))
        with pytest.raises(error):
            call(model, tiny.batch(row))
        hook.remove()
        outs = []
        other = threading.Thread(target=lambda: outs.append(generate(model, tiny.batch(row))), daemon=True)
        other.start()
        other.join(timeout=20)
        assert outs, "the other thread still waits"
    check_row(outs[0], 0, reference(row, "himap"))


def test_threads_may_generate_at_once():
    model, forms = tiny.model("llava-gqa", "sdpa"), list(tiny.forms("llava-gqa").values())
    inputs = tiny.batch(*forms[0])
    with unchanged(model, inputs), foveate.prune(model, METHODS["visipruner"]), ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda batch: generate(model, tiny.batch(*batch)), forms, timeout=120))
    for batch, out in zip(forms, outs, strict=True):
        for b, row in enumerate(batch):
            check_row(out, b, reference(row, "visipruner"))


@every_attention
def test_leaving_waits_for_a_prompt_that_another_thread_reads(attention):
    model, (row,) = tiny.model("llava-gqa", attention), tiny.forms("llava-gqa")["one"]
    inputs, inside, go, logits = tiny.batch(row), threading.Event(), threading.Event(), []

    def pause(module, args):
        inside.set()
        go.wait(timeout=60)

    other = threading.Thread(target=lambda: logits.append(model(**inputs).logits[0, -1].detach()), daemon=True)
    with unchanged(model, inputs):
        with foveate.prune(model, METHODS["himap"]):  # cuts before layers 2 and 5
            hook = model.get_decoder().layers[3].mlp.register_forward_pre_hook(pause)
            other.start()
            assert inside.wait(timeout=60)
            threading.Timer(0.3, go.set).start()
        other.join(timeout=60)
        hook.remove()
    torch.testing.assert_close(logits[0].double(), reference(row, "himap").logits[0], atol=ATOL, rtol=0)


def test_a_failing_install_leaves_nothing(monkeypatch):
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")["one"])
    with unchanged(model, inputs):
        monkeypatch.setattr(families, "adapt", raising(RuntimeError("from the test")))
        with pytest.raises(RuntimeError, match="from the test"):
            foveate.prune(model, METHODS["himap"])
        monkeypatch.undo()
        foveate.prune(model, METHODS["himap"]).remove()  # it is not taken for pruned


def test_the_name_of_a_tap_is_never_used_again():
    """Their objects are gone one by one, and memory addresses come back."""
    assert len({Tap().name for _ in range(50)}) == 50


def test_an_exception_of_the_users_own_code_passes_through():
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")["one"])
    with unchanged(model, inputs), pytest.raises(ZeroDivisionError), foveate.prune(model, METHODS["fastv"]):
        _ = 1 / 0


@few_methods
def test_a_handle_prunes_until_it_is_removed_and_may_be_removed_twice(method):
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    inputs = tiny.batch(row)
    with unchanged(model, inputs):
        pruned = foveate.prune(model, METHODS[method])
        check_row(generate(model, inputs), 0, reference(row, method))
        pruned.remove()
        check_row(generate(model, inputs), 0, reference(row, "dense"))
        pruned.remove()
    with unchanged(model, inputs), foveate.prune(model, METHODS[method]) as pruned:
        pruned.remove()  # and leaving the block once more does no harm


def test_a_refused_prune_leaves_nothing():
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")["one"])
    with unchanged(model, inputs):
        for method in ("nothing like it", foveate.VTW(layer=99)):
            with pytest.raises(ValueError):
                foveate.prune(model, method)
        refused = foveate.prune(model, METHODS["fastv"])
        with pytest.raises((ValueError, NotImplementedError)):
            model(**inputs, labels=inputs["input_ids"])
        refused.remove()


def test_a_second_prune_of_the_same_model_is_refused_and_the_first_goes_on():
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    inputs = tiny.batch(row)
    with unchanged(model, inputs):
        with foveate.prune(model, METHODS["himap"]):
            with pytest.raises(ValueError, match=r"(?i)remove|leave"):
                foveate.prune(model, METHODS["fastv"])
            check_row(generate(model, inputs), 0, reference(row, "himap"))
        with foveate.prune(model, METHODS["fastv"]):  # one after the other is fine
            check_row(generate(model, inputs), 0, reference(row, "fastv"))


def test_two_models_can_be_pruned_at_once():
    ours, theirs = tiny.model("llava-gqa", "sdpa"), tiny.model("qwen", "eager")
    (row,), (other,) = tiny.forms("llava-gqa")["one"], tiny.forms("qwen")["one"]
    with unchanged(ours, tiny.batch(row)), unchanged(theirs, tiny.batch(other)):
        first = foveate.prune(ours, METHODS["himap"])
        second = foveate.prune(theirs, METHODS["visipruner"])
        check_row(generate(ours, tiny.batch(row)), 0, reference(row, "himap"))
        first.remove()  # not in the order of a stack
        check_row(generate(theirs, tiny.batch(other)), 0, reference(other, "visipruner"))
        second.remove()


def test_the_users_own_hooks_and_training_mode_stay():
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")["one"])
    calls = []
    hook = model.get_decoder().layers[2].register_forward_pre_hook(lambda module, args: calls.append(1))
    try:
        with foveate.prune(model, METHODS["himap"]):
            model(**inputs)
        model(**inputs)
    finally:
        hook.remove()
    assert len(calls) == 2
    assert not any(module.training for module in model.modules())


@few_methods
def test_nothing_keeps_a_cache_or_a_model_alive(method):
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    with foveate.prune(model, METHODS[method]):
        out = model(**tiny.batch(row), use_cache=True)
        cache = weakref.ref(out.past_key_values)
        del out
        gc.collect()
        assert cache() is None

    fresh = tiny.text_model("sdpa")
    visual = torch.zeros(1, 30, dtype=torch.bool)
    visual[:, 5:20] = True
    with foveate.prune(fresh, METHODS[method], visual=visual):
        fresh(inputs_embeds=torch.randn(1, 30, tiny.WIDTH))
    gone = weakref.ref(fresh)
    del fresh
    gc.collect()
    assert gone() is None
