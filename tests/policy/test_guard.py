"""The guard: rows that run again are the dense model's, the others the pruned one's, inside the user's own generate."""

import pytest
import torch
from transformers import StaticCache

import foveate
import tiny
from foveate.policy import Cut, Dense, Guard, Schedule
from foveate.policy.guard import Guarded
from foveate.pruning.engine import Pruned

STEPS = 5
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
METHODS = {
    "fastv": foveate.FastV(layer=2, keep=0.2),
    "himap": foveate.HiMAP(layer1=1, keep1=0.5, layer2=4, keep2=0.3),
    "visipruner": foveate.VisiPruner(shallow=1, fire=0.91, influence=0.5, exit=0.93),
    "shallow": foveate.VisiPruner(stages=("shallow",), shallow=3),
    "share": foveate.FastV(layer=2, keep=foveate.Share(0.6)),
    "schedule": Schedule((Cut(2, 0.5, "instruction"), Cut(4, 0.4, "visual"), foveate.VTW(6))),
}
every_method = pytest.mark.parametrize("method", METHODS)


def guard(threshold: float, signal: str = "margin") -> Guard:
    return Guard(signal, threshold, alpha=0.05, confidence=0.95, samples=100, rerun=0.5)


def run(model, pruning, *rows, **settings):
    with pruning as pruned, torch.no_grad():
        out = model.generate(
            **tiny.batch(*rows), max_new_tokens=STEPS, do_sample=False, output_logits=True,
            return_dict_in_generate=True, **settings,
        )  # fmt: skip
    return torch.stack(out.logits, 1), out.sequences, pruned.trace  # (B, steps, V)


def answers(model, method, threshold, *rows, **settings):
    return run(model, Guarded(model, METHODS[method], guard(threshold)), *rows, **settings)


@every_method
@every_family
def test_a_guard_that_trusts_nothing_is_the_dense_model(family, method):
    model, rows = tiny.model(family, "sdpa"), tiny.forms(family)["left padding"]
    logits, said, trace = answers(model, method, 1e6, *rows)
    dense_logits, dense, _ = run(model, Pruned(model, Dense()), *rows)
    assert trace.again == [True, True]
    torch.testing.assert_close(logits, dense_logits, atol=1e-4, rtol=0)
    assert said.equal(dense)


@every_method
def test_a_guard_that_trusts_all_is_the_pruned_model(method):
    model, rows = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["left padding"]
    logits, said, trace = answers(model, method, -1e6, *rows)
    pruned_logits, pruned, before = run(model, Pruned(model, METHODS[method]), *rows)
    assert trace.again == [False, False] and trace.flops == before.flops
    torch.testing.assert_close(logits, pruned_logits, atol=1e-5, rtol=0)  # the guard's last layer reads all tokens
    assert said.equal(pruned)


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@every_method
@every_family
def test_of_a_batch_each_row_runs_again_by_its_own_signal(family, method, attention):
    model, rows = tiny.model(family, attention), tiny.forms(family)["left padding"]
    pruned, _, _ = run(model, Pruned(model, METHODS[method]), *rows)
    dense, _, _ = run(model, Pruned(model, Dense()), *rows)
    best = pruned[:, 0].log_softmax(-1).topk(2).values
    margins = (best[:, 0] - best[:, 1]).tolist()
    logits, _, trace = answers(model, method, sum(margins) / 2, *rows)
    assert sorted(trace.again) == [False, True]
    for row, again in enumerate(trace.again):
        torch.testing.assert_close(logits[row], (dense if again else pruned)[row], atol=1e-4, rtol=0)
        kept = [layer[row] for layer in trace.tokens]
        assert (min(kept) == len(rows[row].ids)) == (again or method == "shallow")


def test_the_entropy_is_a_signal_too():
    model, rows = tiny.model("llava-mha", "sdpa"), tiny.forms("llava-mha")["equal"]
    pruned, _, _ = run(model, Pruned(model, METHODS["fastv"]), *rows)
    certain = [-torch.distributions.Categorical(logits=x).entropy().item() for x in pruned[:, 0]]
    guarded = Guarded(model, METHODS["fastv"], guard(sum(certain) / 2, "entropy"))
    assert run(model, guarded, *rows)[2].again == [x < sum(certain) / 2 for x in certain]


def test_the_cost_counts_the_pruned_run_and_the_layers_that_ran_again():
    model, (row, *_) = tiny.model("llava-mha", "sdpa"), tiny.forms("llava-mha")["one"]
    _, _, trace = answers(model, "fastv", 1e6, row)
    _, _, pruned = run(model, Pruned(model, METHODS["fastv"]), row)
    dense = foveate.cost.prefill(model.config, [len(row.ids)] * tiny.LAYERS, images=0)
    again = dense.decoder * (tiny.LAYERS - 2) // tiny.LAYERS + dense.head
    assert trace.flops == pruned.flops + again > trace.dense_flops
    assert "1 of 1 samples ran again" in str(trace)


def test_beams_go_on_from_rows_that_ran_again():
    model, rows = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["left padding"]
    settings = {"max_new_tokens": STEPS, "num_beams": 2, "do_sample": False}
    with torch.no_grad():
        dense = model.generate(**tiny.batch(*rows), **settings)
        with Guarded(model, METHODS["fastv"], guard(1e6)):
            assert model.generate(**tiny.batch(*rows), **settings).equal(dense)


def test_text_alone_is_left_alone():
    model, rows = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["text only"]
    _, said, trace = answers(model, "fastv", 1e6, *rows)
    assert said.equal(run(model, Pruned(model, Dense()), *rows)[1]) and trace.stages == []


def test_what_a_guard_cannot_do_it_says():
    model, (row, *_) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    static = StaticCache(model.config.get_text_config(), max_cache_len=64)
    with pytest.raises(NotImplementedError, match="dynamic cache"):
        answers(model, "fastv", 1e6, row, past_key_values=static)
    with pytest.raises(NotImplementedError, match="use_cache=True"):
        answers(model, "fastv", 1e6, row, use_cache=False)
    assert not any(layer._forward_pre_hooks for layer in model.base_model.language_model.layers)


@torch.no_grad()
def test_a_prompt_that_an_error_has_ended_is_not_taken_for_the_next():
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    texts = tiny.batch(*tiny.forms("llava-gqa")["text only"])
    dense = model(**texts).logits[:, -1]

    def stop(*args):
        raise RuntimeError("from the test")

    with Guarded(model, METHODS["fastv"], guard(1e6)):
        hook = model.get_decoder().layers[-1].mlp.register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="from the test"):
            model(**tiny.batch(row), use_cache=True)
        hook.remove()
        assert model(**texts).logits[:, -1].equal(dense)


def test_nothing_is_left_behind():
    model, rows = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["equal"]
    before, _, _ = run(model, Pruned(model, Dense()), *rows)
    answers(model, "himap", 1e6, *rows)
    after, _, _ = run(model, Pruned(model, Dense()), *rows)
    assert before.equal(after)
    decoder = model.base_model.language_model
    assert not decoder._forward_hooks and not any(layer._forward_pre_hooks for layer in decoder.layers)
