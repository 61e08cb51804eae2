"""The contracts, for every family and method: dropped equals masked, a row in a batch equals that row alone, keeping
everything is the unpruned model, every way of generating is right or says what to do instead."""

import copy
import re
from contextlib import nullcontext

import pytest
import torch
from transformers import CompileConfig, MllamaConfig, MllamaForConditionalGeneration

import foveate
import tiny
from contracts import ATOL, FEW, METHODS, STEPS, check_row, check_trace, generate, given, reference, rule_of
from reference import rows, rules
from reference.decoder import Decoder

ATTENTION = ("sdpa", "eager")
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
every_attention = pytest.mark.parametrize("attention", ATTENTION)
every_form = pytest.mark.parametrize("form", tiny.FORMS)
every_method = pytest.mark.parametrize("method", METHODS)
few_methods = pytest.mark.parametrize("method", FEW)
two_families = pytest.mark.parametrize("family", ("llava-gqa", "qwen"))

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def masked(row: tiny.Row, method: str, trace, b: int, padding: int) -> rows.Result:
    """The reference for a row; where the draw is the library's own, its cuts are taken over."""
    if METHODS[method].name != "random" or not row.visual:
        return reference(row, "dense" if METHODS[method].name == "random" else method)
    cuts = {stage.layer: [v - padding for v in stage.kept[b].tolist()] for stage in trace.stages}
    return rows.greedy(given(row), rules.Given(cuts), STEPS)


@every_form
@every_method
@every_attention
@every_family
def test_dropped_equals_masked(family, attention, method, form):
    model, batch = tiny.model(family, attention), tiny.forms(family)[form]
    with foveate.prune(model, METHODS[method]) as pruned:
        out = generate(model, tiny.batch(*batch))
    width = max(len(row.ids) for row in batch)
    results = [masked(row, method, pruned.trace, b, width - len(row.ids)) for b, row in enumerate(batch)]
    check_trace(pruned.trace, batch, results)
    for b, result in enumerate(results):
        check_row(out, b, result)

    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    alive = [
        max(len(row.ids) - len(row.visual) + len(r.alive[i]) for row, r in zip(batch, results, strict=True))
        for i in range(tiny.LAYERS)
    ]
    assert lengths == [n + STEPS - 1 for n in alive]  # what is not needed is really gone, in every layer's cache


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
@every_family
def test_the_matrix_can_tell_pruned_from_dense(family, method):
    """Somewhere in the matrix each method changes the logits by far more than the tolerance."""
    batches = tiny.forms(family).values()
    moved = [
        float((reference(row, method).logits[0] - reference(row, "dense").logits[0]).abs().max())
        for row in {row for batch in batches for row in batch if row.visual}
    ]
    assert max(moved) > 1000 * ATOL


@pytest.mark.parametrize("wrong", ("one token fewer", "one layer later", "renumbered", "not at all"))
@two_families
def test_a_slightly_wrong_engine_would_be_noticed(family, wrong):
    """The right run against references that are wrong in one thing only."""
    row = tiny.forms(family)["one"][0]
    right, prompt = reference(row, "himap"), given(row)
    cuts, positions = dict(right.cuts), prompt.positions
    if wrong == "one token fewer":
        cuts[5] = cuts[5][:-1]
    elif wrong == "one layer later":
        cuts = {layer + 1: kept for layer, kept in cuts.items()}
    elif wrong == "renumbered":
        after = row.visual[-1] + 1
        positions = torch.cat([positions[..., :after], positions[..., after:] - len(row.visual) // 2], dim=-1)
    else:
        cuts = {}
    spoilt = rows.Input(prompt.decoder, prompt.prompt, prompt.embeds, positions)
    out = rows.forced(spoilt, rules.Given(cuts), right.tokens)
    assert (out.logits - right.logits).abs().max() > 20 * ATOL


@every_family
def test_visipruner_decides_at_different_layers_in_the_rows_of_a_batch(family):
    """That is the hard case for an engine that keeps batches rectangular: the thresholds above must produce it."""
    pairs = [tiny.forms(family)[form][:2] for form in ("equal", "left padding", "ragged")]
    seen = [[reference(row, "visipruner") for row in pair] for pair in pairs]
    assert any(first.rule.filter_layer != second.rule.filter_layer for first, second in seen)
    exits = [result.alive[-1] == [] for pair in seen for result in pair]
    assert True in exits and False in exits


@every_method
@every_attention
@two_families
def test_a_row_in_a_padded_batch_equals_that_row_alone(family, attention, method):
    model, batch = tiny.model(family, attention), tiny.forms(family)["ragged"]
    width = max(len(row.ids) for row in batch)
    with foveate.prune(model, METHODS[method]) as pruned:
        together, traced = generate(model, tiny.batch(*batch)), pruned.trace
        for b, row in enumerate(batch):
            alone = generate(model, tiny.batch(row))
            assert torch.equal(together.sequences[b, -STEPS:], alone.sequences[0, -STEPS:])
            for batched, single in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(batched[b], single[0], atol=5e-5, rtol=0)
            for layer in range(tiny.LAYERS):
                assert int(traced.tokens[layer][b]) == int(pruned.trace.tokens[layer][0])
            padding = width - len(row.ids)
            if METHODS[method].name == "random" and row.visual:
                assert [v - padding for v in traced.stages[-1].kept[b].tolist()] == pruned.trace.stages[-1].kept[
                    0
                ].tolist()


@pytest.mark.parametrize("method", (*FEW, "vtw first", "visipruner halve"))
@every_attention
@two_families
def test_a_prompt_may_begin_with_its_image(family, attention, method):
    """No token stands before the image, so that some rows lose everything they could look at."""
    model = tiny.model(family, attention)
    side = (4, 6) if family == "qwen" else (tiny.LLAVA_SIDE, tiny.LLAVA_SIDE)
    batch = (tiny.row(family, side, text=6, seed=21, system=()), tiny.row(family, side, text=9, seed=22, system=()))
    with foveate.prune(model, METHODS[method]) as pruned:
        out = generate(model, tiny.batch(*batch))
    results = [reference(row, method) for row in batch]
    check_trace(pruned.trace, batch, results)
    for b, result in enumerate(results):
        check_row(out, b, result)


@pytest.mark.parametrize("method", (*FEW, "vtw"))
@every_attention
@two_families
def test_padding_in_every_row_changes_nothing(family, attention, method):
    model, batch = tiny.model(family, attention), tiny.forms(family)["left padding"]
    with foveate.prune(model, METHODS[method]) as pruned:
        out = generate(model, tiny.batch(*batch, spare=5))
    results = [reference(row, method) for row in batch]
    check_trace(pruned.trace, batch, results, spare=5)
    for b, result in enumerate(results):
        check_row(out, b, result)


EVERYTHING = {
    "fastv": foveate.FastV(layer=2, keep=1.0),
    "fastv count": foveate.FastV(layer=2, keep=1000),
    "himap": foveate.HiMAP(layer1=2, keep1=1.0, layer2=4, keep2=1.0),
    "random": foveate.Random(layer=2, keep=1.0),
    "uniform": foveate.Uniform(layer=2, keep=1.0),
    "visipruner": foveate.VisiPruner(stages=("middle", "deep"), shallow=1, fire=-1.0),
}


@every_form
@pytest.mark.parametrize("method", EVERYTHING)
@every_attention
@every_family
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(family, attention, method, form):
    model, inputs = tiny.model(family, attention), tiny.batch(*tiny.forms(family)[form])
    dense = generate(model, inputs)
    with foveate.prune(model, EVERYTHING[method]):
        out = generate(model, inputs)
    assert torch.equal(out.sequences, dense.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, dense.logits, strict=True))


@every_method
@every_attention
@two_families
def test_a_prompt_without_images_is_untouched_bit_for_bit(family, attention, method):
    model, inputs = tiny.model(family, attention), tiny.batch(*tiny.forms(family)["text only"])
    dense = generate(model, inputs)
    with foveate.prune(model, METHODS[method]):
        out = generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, dense.logits, strict=True))


@every_attention
@every_family
def test_tokens_really_leave_the_layers_from_the_cut_on(family, attention):
    model, (row,) = tiny.model(family, attention), tiny.forms(family)["one"]
    seen = []
    hooks = [
        layer.mlp.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
        for layer in model.get_decoder().layers
    ]
    try:
        with foveate.prune(model, foveate.VTW(layer=3)):
            model(**tiny.batch(row))
    finally:
        for hook in hooks:
            hook.remove()
    text = len(row.ids) - len(row.visual)
    assert seen == [len(row.ids)] * 3 + [text] * (tiny.LAYERS - 3)


def test_random_keeps_the_right_number_and_depends_on_its_seed_only():
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]

    def draw(seed: int) -> list[int]:
        with foveate.prune(model, foveate.Random(layer=2, keep=0.4, seed=seed)) as pruned:
            model(**tiny.batch(row))
        return pruned.trace.stages[0].kept[0].tolist()

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert draw(0) == first
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.rand(1))  # the user's own stream of random numbers goes on as if nothing happened
    assert len(first) == len(set(first)) == round(0.4 * len(row.visual))
    assert set(first) <= set(row.visual) and first == sorted(first)
    assert len({tuple(draw(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("name", ("fastv", "himap", "vtw", "visipruner", "random", "uniform"))
def test_a_name_stands_for_the_defaults(name):
    """The defaults want deeper models than the tiny ones; the name has to be understood all the same."""
    model = tiny.model("llava-gqa", "sdpa")
    if name in ("fastv", "random", "uniform"):
        with foveate.prune(model, name) as pruned:
            model(**tiny.batch(tiny.forms("llava-gqa")["one"][0]))
        assert pruned.trace.stages[0].layer == 2 and len(pruned.trace.stages[0].kept[0]) == 12  # round(12.5)
    else:
        with pytest.raises(ValueError, match="layer"):
            foveate.prune(model, name)


def test_the_trace_is_of_the_last_prompt_and_none_before_the_first():
    model, forms = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")
    with foveate.prune(model, METHODS["himap"]) as pruned:
        assert pruned.trace is None
        for form in ("ragged", "one", "text only", "left padding"):
            out = generate(model, tiny.batch(*forms[form]))
            results = [reference(row, "himap") for row in forms[form]]
            check_trace(pruned.trace, forms[form], results)
            for b, result in enumerate(results):
                check_row(out, b, result)
        assert str(pruned.trace)
    assert pruned.trace is not None


# ---- ways of generating


@few_methods
@every_attention
@two_families
def test_beams_follow_the_masked_model(family, attention, method):
    model, batch = tiny.model(family, attention), tiny.forms(family)["left padding"]
    with foveate.prune(model, METHODS[method]):
        out = generate(model, tiny.batch(*batch), num_beams=3, output_scores=True)
    for b, row in enumerate(batch):
        tokens, score = rows.beam_search(given(row), rule_of(METHODS[method]), beams=3, steps=STEPS)
        assert out.sequences[b, -STEPS:].tolist() == tokens
        assert float(out.sequences_scores[b]) == pytest.approx(score, abs=ATOL)


@few_methods
@every_attention
@two_families
def test_sampling_draws_what_the_masked_model_draws(family, attention, method):
    model, (row,) = tiny.model(family, attention), tiny.forms(family)["one"]
    with foveate.prune(model, METHODS[method]):
        torch.manual_seed(5)
        out = generate(model, tiny.batch(row), do_sample=True, top_k=0)
    tokens = out.sequences[0, -STEPS:].tolist()
    result = rows.forced(given(row), rule_of(METHODS[method]), tokens)
    check_row(out, 0, result)
    torch.manual_seed(5)
    draws = [torch.multinomial(result.logits[step].float().softmax(-1), 1).item() for step in range(STEPS)]
    assert tokens == draws


@few_methods
@every_attention
@two_families
def test_several_answers_to_one_prompt_follow_the_masked_model(family, attention, method):
    model, batch = tiny.model(family, attention), tiny.forms(family)["ragged"]
    with foveate.prune(model, METHODS[method]):
        out = generate(model, tiny.batch(*batch), do_sample=True, num_return_sequences=2)
    for b in range(2 * len(batch)):
        row = batch[b // 2]
        check_row(out, b, rows.forced(given(row), rule_of(METHODS[method]), out.sequences[b, -STEPS:].tolist()))


@pytest.mark.parametrize("leave", (False, True), ids=("in one block", "after leaving and entering again"))
@few_methods
@every_attention
@two_families
@pytest.mark.parametrize("form", ("one", "ragged"))
def test_a_second_turn_of_text_goes_on_from_the_pruned_cache(family, attention, method, form, leave):
    model, batch = tiny.model(family, attention), tiny.forms(family)[form]
    inputs, more = tiny.batch(*batch), [31, 32, 33]
    pruned = foveate.prune(model, METHODS[method])
    try:
        first = generate(model, inputs)
        if leave:
            pruned.remove()
            pruned = foveate.prune(model, METHODS[method])
        ids = torch.cat([first.sequences, torch.tensor([more] * len(batch))], dim=1)
        longer = ids.shape[1] - inputs["attention_mask"].shape[1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, longer), value=1)
        turn = {"input_ids": ids, "attention_mask": mask}
        if family == "qwen":
            turn["mm_token_type_ids"] = (ids == tiny.IMAGE).int()
        second = generate(model, turn, past_key_values=first.past_key_values)
    finally:
        pruned.remove()
    for b, row in enumerate(batch):
        said = first.sequences[b, -STEPS:].tolist() + more + second.sequences[b, -STEPS:].tolist()
        result = rows.forced(given(row), rule_of(METHODS[method]), said)
        for step, logits in enumerate(second.logits):
            masked_logits = result.logits[STEPS + len(more) + step]
            torch.testing.assert_close(logits[b].double(), masked_logits, atol=ATOL, rtol=0)


@few_methods
@every_attention
@two_families
@pytest.mark.parametrize("form", ("one", "ragged"))
def test_a_static_cache_gives_the_same(family, attention, method, form):
    model, batch = tiny.model(family, attention), tiny.forms(family)[form]
    with foveate.prune(model, METHODS[method]):
        out = generate(model, tiny.batch(*batch), cache_implementation="static")
    for b, row in enumerate(batch):
        check_row(out, b, reference(row, method))


def test_compiled_decode_is_one_graph_and_not_reused_by_the_other_side():
    """Dense, pruned, dense again: a graph that was made without hooks must not serve with them, nor the other way."""
    model, batch = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["left padding"]
    options = CompileConfig(backend="eager", fullgraph=True, mode=None)
    options._compile_all_devices = True  # transformers compiles on accelerators only unless told so
    before = set(vars(model))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        for method in ("dense", "visipruner", "dense"):
            with foveate.prune(model, METHODS[method]) if method != "dense" else nullcontext():
                out = generate(model, tiny.batch(*batch), cache_implementation="static", compile_config=options)
            for b, row in enumerate(batch):
                check_row(out, b, reference(row, method))
        assert not torch._dynamo.utils.counters["graph_break"]
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # one for each time, none for each step
    finally:
        torch._dynamo.reset()
        for attribute in set(vars(model)) - before:
            delattr(model, attribute)


@few_methods
@every_attention
def test_prompt_lookup_decoding_gives_the_same(attention, method):
    model, (row,) = tiny.model("llava-gqa", attention), tiny.forms("llava-gqa")["one"]
    with foveate.prune(model, METHODS[method]):
        out = generate(model, tiny.batch(row), prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    check_row(out, 0, reference(row, method))


@few_methods
@every_attention
@two_families
def test_a_forward_without_cache_gives_the_same(family, attention, method):
    model, batch = tiny.model(family, attention), tiny.forms(family)["ragged"]
    with foveate.prune(model, METHODS[method]):
        logits = model(**tiny.batch(*batch), use_cache=False).logits
    for b, row in enumerate(batch):
        result = reference(row, method)
        torch.testing.assert_close(logits[b, -1].double(), result.logits[0], atol=ATOL, rtol=0)


@few_methods
@every_attention
@two_families
def test_generating_without_cache_gives_the_same(family, attention, method):
    """Every step reads prompt and answer again; the method is shown the prompt."""
    model, batch = tiny.model(family, attention), tiny.forms(family)["ragged"]
    with foveate.prune(model, METHODS[method]) as pruned:
        out = generate(model, tiny.batch(*batch), use_cache=False)
    results = [reference(row, method) for row in batch]
    check_trace(pruned.trace, batch, results)
    for b, result in enumerate(results):
        check_row(out, b, result)


@few_methods
@every_attention
@two_families
def test_hidden_states_can_be_asked_for(family, attention, method):
    model, (row,) = tiny.model(family, attention), tiny.forms(family)["one"]
    result = reference(row, method)
    with foveate.prune(model, METHODS[method]):
        states = model(**tiny.batch(row), output_hidden_states=True).hidden_states
    assert len(states) == tiny.LAYERS + 1
    torch.testing.assert_close(states[-1][0, -1].double(), result.hidden, atol=ATOL, rtol=0)


@few_methods
@two_families
def test_attentions_can_be_asked_for_under_eager(family, method):
    model, (row,) = tiny.model(family, "eager"), tiny.forms(family)["one"]
    with foveate.prune(model, METHODS[method]):
        out = model(**tiny.batch(row), output_attentions=True)
    torch.testing.assert_close(out.logits[0, -1].double(), reference(row, method).logits[0], atol=ATOL, rtol=0)
    text = len(row.ids) - len(row.visual)
    assert [a.shape[-1] for a in out.attentions] == [text + len(alive) for alive in reference(row, method).alive]


@pytest.mark.parametrize("method", ("fastv", "vtw"))
@every_attention
def test_a_manual_loop_without_positions_gives_the_same(attention, method):
    model, (row,) = tiny.model("llava-gqa", attention), tiny.forms("llava-gqa")["one"]
    result = reference(row, method)
    with foveate.prune(model, METHODS[method]):
        out = model(**tiny.batch(row), use_cache=True)
        for step, token in enumerate(result.tokens):
            torch.testing.assert_close(out.logits[0, -1].double(), result.logits[step], atol=ATOL, rtol=0)
            out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)


@every_attention
def test_one_cache_goes_on_while_another_prompt_runs_in_between(attention):
    """What was dropped belongs to a cache, not to the model."""
    model = tiny.model("llava-gqa", attention)
    (row,), other = tiny.forms("llava-gqa")["one"], tiny.forms("llava-gqa")["ragged"]
    result = reference(row, "himap")
    with foveate.prune(model, METHODS["himap"]):
        out = model(**tiny.batch(row), use_cache=True)
        for step, token in enumerate(result.tokens):
            torch.testing.assert_close(out.logits[0, -1].double(), result.logits[step], atol=ATOL, rtol=0)
            for b, result_b in enumerate([reference(r, "himap") for r in other]):
                check_row(generate(model, tiny.batch(*other), max_new_tokens=2), b, shortened(result_b, 2))
            out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)


def shortened(result: rows.Result, steps: int) -> rows.Result:
    return rows.Result(result.logits, result.tokens[:steps], result.cuts, result.alive, result.hidden, result.rule)


@few_methods
@every_attention
def test_embeddings_with_a_visual_mask_equal_ids_with_pictures(attention, method):
    model, batch = tiny.model("llava-gqa", attention), tiny.forms("llava-gqa")["left padding"]
    inputs = tiny.batch(*batch)
    ids, width = inputs["input_ids"], inputs["input_ids"].shape[1]
    embeds = torch.zeros(len(batch), width, tiny.WIDTH)
    for b, row in enumerate(batch):
        embeds[b, width - len(row.ids) :] = given(row).embeds.float()
    with foveate.prune(model, METHODS[method], visual=ids == tiny.IMAGE) as pruned:
        out = generate(model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]})
    results = [reference(row, method) for row in batch]
    check_trace(pruned.trace, batch, results)
    for b, result in enumerate(results):
        check_row(out, b, result)


@every_method
def test_half_precision_runs_and_keeps_the_right_number(method):
    model, batch = copy.deepcopy(tiny.model("llava-gqa", "sdpa")).bfloat16(), tiny.forms("llava-gqa")["ragged"]
    inputs = tiny.batch(*batch)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with foveate.prune(model, METHODS[method]) as pruned:
        out = generate(model, inputs)
    assert all(logits.isfinite().all() for logits in out.logits)
    if METHODS[method].name in ("fastv", "himap", "vtw", "uniform"):
        counts = [[len(kept) for kept in stage.kept] for stage in pruned.trace.stages]
        wanted = [reference(row, method) for row in batch]
        assert counts == [[len(r.alive[stage.layer]) for r in wanted] for stage in pruned.trace.stages]


def test_a_video_is_pruned_like_an_image():
    """Their placeholders are visual as well. Positions are the model's own here: the reference knows images only."""
    model, eager = tiny.model("qwen", "sdpa"), tiny.model("qwen", "eager")
    ids = torch.tensor([[1, 5, tiny.VISION_START, *[tiny.VIDEO] * 24, tiny.VISION_END, 11, 12, 13, 14]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(96, 1176),
        "video_grid_thw": torch.tensor([[2, 6, 8]]),
        "second_per_grid_ts": torch.tensor([1.0]),
        "mm_token_type_ids": 2 * (ids == tiny.VIDEO).int(),
    }
    with foveate.prune(model, METHODS["fastv"]) as pruned:
        out = generate(model, inputs)
    visual = list(range(3, 27))
    assert pruned.trace.visual[0].tolist() == visual

    decoder = Decoder.of(eager)
    embeds = decoder.embed(ids[0].tolist()).clone()
    features = eager.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
    embeds[visual] = torch.cat(list(features)).double()
    positions, _ = eager.model.get_rope_index(
        ids,
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    video = rows.Input(decoder, rules.Prompt(ids.shape[1], tuple(visual)), embeds, positions[:, 0])
    check_row(out, 0, rows.greedy(video, rule_of(METHODS["fastv"]), STEPS))


# ---- what cannot be right says so


@pytest.mark.parametrize("method", ("fastv", "himap", "vtw", "visipruner", "uniform", "random"))
def test_a_prompt_that_ends_in_an_image_is_refused(method):
    """Its last token, whose logits are wanted, would be one of those that may go."""
    model = tiny.model("llava-gqa", "sdpa")
    row = tiny.Row("llava-gqa", (1, 5, 6, 8, 9, *[tiny.IMAGE] * 25), ((901, 5, 5),))
    batch = (row, tiny.forms("llava-gqa")["one"][0])
    with foveate.prune(model, METHODS[method]), pytest.raises((ValueError, NotImplementedError), match=r"(?i)text"):
        generate(model, tiny.batch(*batch))


def test_padding_on_the_right_is_refused():
    model, batch = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["left padding"]
    inputs, width = tiny.batch(*batch), max(len(row.ids) for row in batch)
    inputs["input_ids"] = torch.tensor([[*row.ids, *[tiny.PAD] * (width - len(row.ids))] for row in batch])
    inputs["attention_mask"] = (inputs["input_ids"] != tiny.PAD).long()
    with foveate.prune(model, METHODS["fastv"]), pytest.raises((ValueError, NotImplementedError), match=r"(?i)left"):
        model(**inputs)


def test_an_image_after_a_turn_of_text_is_right_or_refused():
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    hello = torch.tensor([[1, 5, 6, 20, 21, 22]])
    with foveate.prune(model, METHODS["fastv"]):
        first = generate(model, {"input_ids": hello, "attention_mask": torch.ones_like(hello)})
        whole = tiny.Row("llava-gqa", (*first.sequences[0].tolist(), *row.ids[3:]), row.images)
        try:
            out = generate(model, tiny.batch(whole), past_key_values=first.past_key_values)
        except (ValueError, NotImplementedError) as error:
            assert "cache" in str(error)
            return
    check_row(out, 0, reference(whole, "fastv"))


def test_new_images_after_a_pruned_prompt_are_refused():
    model, (row,) = tiny.model("llava-gqa", "sdpa"), tiny.forms("llava-gqa")["one"]
    inputs = tiny.batch(row)
    with foveate.prune(model, METHODS["fastv"]):
        first = generate(model, inputs)
        ids = torch.cat([first.sequences, inputs["input_ids"][:, 3:]], dim=1)
        turn = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": inputs["pixel_values"],
        }
        with pytest.raises((ValueError, NotImplementedError), match=r"(?i)image.*cache|cache.*image"):
            generate(model, turn, past_key_values=first.past_key_values)


@two_families
def test_a_prefill_in_chunks_that_split_an_image_is_refused(family):
    model, (row,) = tiny.model(family, "sdpa"), tiny.forms(family)["one"]
    with (
        foveate.prune(model, METHODS["fastv"]),
        pytest.raises((ValueError, NotImplementedError), match="prefill_chunk_size"),
    ):
        generate(model, tiny.batch(row), prefill_chunk_size=10)


@two_families
def test_labels_are_refused(family):
    model, (row,) = tiny.model(family, "sdpa"), tiny.forms(family)["one"]
    inputs = tiny.batch(row)
    with foveate.prune(model, METHODS["fastv"]), pytest.raises((ValueError, NotImplementedError), match="labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_embeddings_without_a_visual_mask_are_refused():
    model = tiny.model("llava-gqa", "sdpa")
    with foveate.prune(model, METHODS["fastv"]), pytest.raises(ValueError, match="visual="):
        model(inputs_embeds=torch.randn(1, 30, tiny.WIDTH))


def test_a_visual_mask_of_another_shape_is_refused():
    model = tiny.model("llava-gqa", "sdpa")
    visual = torch.ones(1, 29, dtype=torch.bool)
    with foveate.prune(model, METHODS["fastv"], visual=visual), pytest.raises(ValueError, match="visual"):
        model(inputs_embeds=torch.randn(1, 30, tiny.WIDTH))


def test_a_text_model_without_a_visual_mask_is_refused():
    model = tiny.text_model("sdpa")
    with pytest.raises(ValueError, match="visual="), foveate.prune(model, METHODS["fastv"]):
        model(input_ids=torch.arange(8, 30)[None])


def test_a_model_with_cross_attention_is_refused_at_once():
    text = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "cross_attention_layers": [1],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 32,
        "attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "vision_output_dim": 64,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
        "intermediate_layers_indices": [0],
    }
    model = MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text))
    with pytest.raises((ValueError, NotImplementedError), match=r"(?i)cross.attention"):
        foveate.prune(model, foveate.FastV(layer=1))


TOO_DEEP = {
    "layer 0": lambda: foveate.FastV(layer=0, keep=0.5),
    "negative layer": lambda: foveate.VTW(layer=-1),
    "fastv": lambda: foveate.FastV(layer=tiny.LAYERS, keep=0.5),
    "vtw": lambda: foveate.VTW(layer=tiny.LAYERS),
    "himap": lambda: foveate.HiMAP(layer1=2, layer2=tiny.LAYERS),
    "random": lambda: foveate.Random(layer=99, keep=0.5),
    "uniform": lambda: foveate.Uniform(layer=0, keep=0.5),
}


@pytest.mark.parametrize("method", TOO_DEEP)
def test_a_layer_that_the_model_does_not_have_is_refused(method):
    model = tiny.model("llava-gqa", "sdpa")
    with pytest.raises(ValueError, match="layer"):
        foveate.prune(model, TOO_DEEP[method]())


WRONG_FIELDS = {
    "keep above 1": (lambda: foveate.FastV(layer=2, keep=1.5), "keep"),
    "negative keep": (lambda: foveate.Uniform(layer=2, keep=-0.5), "keep"),
    "rows": (lambda: foveate.FastV(layer=2, rows="some"), "rows.*last.*all"),
    "deep": (lambda: foveate.HiMAP(deep="both"), "deep.*receives.*sends"),
    "layers out of order": (lambda: foveate.HiMAP(layer1=5, layer2=3), "layer"),
    "stage": (lambda: foveate.VisiPruner(stages=("shallow", "deeper")), "(?s)stages.*middle"),
    "first layer": (lambda: foveate.VisiPruner(first_layer="13b"), "first_layer.*merge.*halve"),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_field_that_means_nothing_is_refused(field):
    make, message = WRONG_FIELDS[field]
    with pytest.raises(ValueError, match=message):
        foveate.prune(tiny.model("llava-gqa", "sdpa"), make())


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="fastv") as error:
        foveate.prune(tiny.model("llava-gqa", "sdpa"), "fastvv")
    assert all(re.search(name, str(error.value)) for name in ("himap", "vtw", "visipruner", "random", "uniform"))


def test_something_that_is_no_method_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"(?i)method"):
        foveate.prune(tiny.model("llava-gqa", "sdpa"), 0.5)


def test_continuous_batching_is_refused():
    model = tiny.model("llava-gqa", "sdpa")
    with (
        foveate.prune(model, METHODS["fastv"]),
        pytest.raises((ValueError, NotImplementedError), match=r"(?i)generate_batch|continuous"),
    ):
        model.generate_batch([[1, 5, 6, 8, 9], [1, 5, 6]])
