"""Every analysis, in padded batches under sdpa and eager, against the slow float64 version of each row alone."""

import math
from functools import cache

import numpy as np
import pytest
import torch

import foveate
import tiny
import tiny_families
from foveate import flow
from foveate.pruning.layout import GROUPS
from reference import analyses as slow
from reference import flow as slow_flow
from reference import rows
from reference.decoder import run

FAMILIES = ("llava-gqa", "qwen")
FORMS = ("left padding", "ragged")
ANSWERS = ((11, 12), (13, 14), (15, 16))
CLOSE = {"rtol": 2e-3, "atol": 2e-6}


def batch_of(family: str, form: str) -> flow.Batch:
    prompts = tiny.forms(family)[form]
    return flow.Batch(tiny.batch(*prompts), ANSWERS[: len(prompts)], [f"task {i}" for i in range(len(prompts))])


@cache
def inputs_of(family: str, form: str) -> list[rows.Input]:
    model = tiny.model(family, "eager")
    return [rows.of_row(model, row, tiny.batch(row), tiny.IMAGE) for row in tiny.forms(family)[form]]


@pytest.fixture(params=[(f, form) for f in FAMILIES for form in FORMS], ids=lambda p: " ".join(p))
def case(request):
    """(model under sdpa, batch, the same prompts for the reference)."""
    family, form = request.param
    return tiny.model(family, "sdpa"), batch_of(family, form), inputs_of(family, form)


def expect(found, wanted, **tolerance):
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(wanted, float), **(CLOSE | tolerance))


@pytest.mark.parametrize("reduce", ["signed", "meanabs"])
def test_saliency_is_that_of_each_row_alone(case, reduce):
    model, batch, given = case
    found = flow.saliency(model, [batch], reduce=reduce)
    for b, one in enumerate(given):
        loss, maps = slow_flow.saliency(one, ANSWERS[b][0])
        expect(found["loss"][b], loss)
        for layer, products in enumerate(maps):
            edges = products.sum(0).abs() if reduce == "signed" else products.abs().mean(0)
            total, count = slow.edge_sums(edges, one)
            for r, reader in enumerate(GROUPS):
                for s, source in enumerate(GROUPS):
                    expect(found["flow"][b, layer, r, s], total[reader, source])
                    if count[reader, source]:
                        expect(found["edge"][b, layer, r, s], total[reader, source] / count[reader, source])
                    else:
                        assert np.isnan(found["edge"][b, layer, r, s])
            if one.prompt.visual:
                for name, value in slow_flow.group_means(edges, one).items():
                    expect(found[name][b, layer], value)


def test_the_released_saliency_is_another_quantity(case):
    model, batch, given = case
    found, exact = flow.saliency(model, [batch], variant="released"), flow.saliency(model, [batch])
    assert np.nanmax(np.abs(found["S_img"] - exact["S_img"])) > 1e-3
    for b, one in enumerate(given):
        _, maps = slow_flow.saliency(one, ANSWERS[b][0])
        layers = run(one.decoder, one.embeds, one.positions).layers
        for layer, (products, done) in enumerate(zip(maps, layers, strict=True)):
            for name, value in slow.released_curves(products, done.attention, one).items():
                expect(found[name][b, layer], value)


def check_moved(found, b, index, full, logits, prefix=""):
    for key, value in slow.compared(full, logits).items():
        expect(found[f"{prefix}{key}"][(b, *index)], value, atol=2e-5)


def test_knockout_is_that_of_each_row_alone(case):
    model, batch, given = case
    sets = [[0], [3], [7], [0, 1, 2], [2, 5]]
    found = flow.knockout(model, [batch], kinds=("visual-textual", "intra-visual"), layers=sets)
    readers = {"visual-textual": ["instruction", "answer"], "intra-visual": ["image"]}
    for b, one in enumerate(given):
        full = slow.knocked(one, [], set())
        for k, kind in enumerate(found.labels["kind"]):
            edges = slow.edges_between(one, readers[kind], ["image"])
            for s, layers in enumerate(sets):
                check_moved(found, b, (k, s), full, slow.knocked(one, edges, set(layers)))


def test_withdrawal_and_skips_are_those_of_each_row_alone(case):
    model, batch, given = case
    found = flow.withdrawal(model, [batch], skips=True)
    for b, one in enumerate(given):
        full = slow.knocked(one, [], set())
        for layer in range(one.decoder.layers):
            check_moved(found, b, (layer,), full, slow.withdrawn(one, layer))
            check_moved(found, b, (layer,), full, slow.skipped(one, layer), prefix="skip_")


def test_windows_are_those_of_each_row_alone(case):
    model, batch, given = case
    found = flow.windows(model, [batch], width=3)
    for b, one in enumerate(given):
        full, depth = slow.knocked(one, [], set()), one.decoder.layers
        edges = slow.edges_between(one, ["instruction", "answer"], ["image"])
        for k in range(depth):
            stretches = {"first": range(k + 1), "last": range(k, depth), "window": range(k, min(k + 3, depth))}
            for sweep, layers in stretches.items():
                check_moved(found, b, (k,), full, slow.knocked(one, edges, set(layers)), prefix=f"{sweep}_")


@pytest.mark.parametrize("family", FAMILIES)
def test_hiding_the_picture_from_a_layer_on_is_withdrawing_it_there(family):
    model, batch = tiny.model(family, "sdpa"), batch_of(family, "ragged")
    hidden, gone = flow.windows(model, [batch], sweeps=("last",)), flow.withdrawal(model, [batch])
    for measure in ("kl", "same", "jaccard"):
        expect(hidden[f"last_{measure}"], gone[measure], atol=2e-5)


@torch.no_grad()
def test_queries_that_are_scaled_by_position_keep_their_own():
    model, inputs = tiny_families.model("ministral3", "sdpa"), tiny_families.batch("ministral3", tiny_families.Row())
    found = flow.withdrawal(model, [flow.Batch(inputs, ANSWERS[:1], ["task"])])
    dense = model(**inputs).logits[0, -1].log_softmax(-1)
    for layer in range(1, tiny_families.LAYERS):
        with foveate.prune(model, foveate.VTW(layer)):
            gone = model(**inputs).logits[0, -1].log_softmax(-1)
        expect(found["kl"][0, layer], (gone.exp() * (gone - dense)).sum(), atol=1e-5)


def test_merging_is_that_of_each_row_alone(case):
    model, batch, given = case
    found = flow.merging(model, [batch])
    for b, one in enumerate(given):
        full = slow.knocked(one, [], set())
        for k in range(one.decoder.layers):
            check_moved(found, b, (k,), full, slow.merged(one, {k}))
            check_moved(found, b, (k,), full, slow.merged(one, set(range(k + 1))), prefix="first_")


def test_allocation_and_sinks_are_those_of_each_row_alone(case):
    model, batch, given = case
    found = flow.allocation(model, [batch], factor=1.2)
    assert np.nansum(found["sinks"]) > 0
    for b, one in enumerate(given):
        for layer, done in enumerate(run(one.decoder, one.embeds, one.positions).layers):
            for key, value in slow.allocation(done, one, factor=1.2).items():
                name, group = key if isinstance(key, tuple) else (key, None)
                place = (b, layer) if group is None else (b, layer, GROUPS.index(group))
                expect(found[name][place], value)


def test_critical_tokens_are_those_of_each_row_alone(case):
    model, batch, given = case
    found = flow.critical(model, [batch], fire=0.99, influence=0.25, top=4)
    for b, one in enumerate(given):
        before = None
        for layer, done in enumerate(run(one.decoder, one.embeds, one.positions).layers):
            seen = slow.influence(done, one)
            if not seen:
                assert all(np.isnan(found[name][b, layer]) for name in found.values)
                continue
            cosine, norm = ([x[i] for x in seen.values()] for i in range(2))
            expect(found["lowest"][b, layer], min(cosine))
            expect(found["critical"][b, layer], sum(c < 0.99 for c in cosine))
            expect(found["influential"][b, layer], sum(n > 0.25 for n in norm))
            expect(found["largest"][b, layer], max(norm))
            expect(found["total"][b, layer], sum(norm))
            leading = set(sorted(seen, key=lambda j: -seen[j][1])[:4])
            wanted = math.nan if before is None else len(leading & before) / len(leading | before)
            expect(found["focus"][b, layer], wanted)
            before = leading


def test_lenses_are_those_of_each_row_alone(case):
    model, batch, given = case
    found = flow.lenses(model, [batch])
    for b, one in enumerate(given):
        states, true = slow.layer_states(one), ANSWERS[b][0]
        said = int(slow.logits_of(one, states[-1][-1]).argmax())
        for layer, done in enumerate(run(one.decoder, one.embeds, one.positions).layers):
            p = slow.logits_of(one, states[layer + 1][-1]).softmax(-1)
            expect(found["answer"][b, layer], p[true])
            expect(found["rank"][b, layer], sum(float(x) > float(p[true]) for x in p))
            expect(found["entropy"][b, layer], -sum(float(x) * math.log(x) for x in p))
            expect(found["same"][b, layer], int(p.argmax()) == said)
            for g, (_, columns) in enumerate(slow.groups(one).items()):
                if not columns:
                    assert np.isnan(found["value_answer"][b, layer, g])
                    continue
                part = slow.brought(done, one, layer, columns)
                q = slow.logits_of(one, part).softmax(-1)
                expect(found["value_size"][b, layer, g], part.norm())
                expect(found["value_answer"][b, layer, g], q[true])
                expect(found["value_rank"][b, layer, g], sum(float(x) > float(q[true]) for x in q))


ANALYSES = [
    flow.saliency, flow.knockout, flow.withdrawal, flow.windows,
    flow.allocation, flow.critical, flow.merging, flow.lenses,
]  # fmt: skip


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda f: f.__name__)
def test_eager_gives_what_sdpa_gives(analysis):
    batch = batch_of("qwen", "ragged")
    found, wanted = (analysis(tiny.model("qwen", kernel), [batch]) for kernel in ("eager", "sdpa"))
    for name in wanted.values:
        expect(found[name], wanted[name], atol=2e-5)


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda f: f.__name__)
def test_a_row_in_a_padded_batch_equals_that_row_alone_even_with_random_edges(analysis):
    model, prompts = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["ragged"]
    together = analysis(model, [batch_of("llava-gqa", "ragged")])
    alone = analysis(model, [flow.Batch(tiny.batch(row), [ANSWERS[i]]) for i, row in enumerate(prompts)])
    for name in together.values:
        expect(together[name], alone[name], atol=2e-5)


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda f: f.__name__)
def test_an_analysis_leaves_the_model_as_it_was(analysis, registries_before):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, batch = tiny.model("qwen", "sdpa"), batch_of("qwen", "left padding")
    before = {name: (id(m.__dict__.get("config")), len(m._forward_hooks), len(m._forward_pre_hooks))
              for name, m in model.named_modules()}  # fmt: skip
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.no_grad():
        logits = model(**batch.inputs).logits
    analysis(model, [batch])
    after = {name: (id(m.__dict__.get("config")), len(m._forward_hooks), len(m._forward_pre_hooks))
             for name, m in model.named_modules()}  # fmt: skip
    assert before == after and dict(ALL_ATTENTION_FUNCTIONS) == registries_before[0]
    assert wanted == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs).logits, logits)
