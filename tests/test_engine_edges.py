"""Odd uses of the engine: wrapped and compiled models, drafts, static caches, half precision, and bad arguments."""

import copy
from typing import Any

import cost_families
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import StaticCache

import checkpoints
import foveate
import tiny
import tiny_families
from contracts import ATOL, FEW, METHODS, check_row, generate, reference
from foveate.methods.base import highest
from foveate.pruning.attention import Attention
from reference.flash import flash

few_methods = pytest.mark.parametrize("method", FEW)
every_method = pytest.mark.parametrize("method", METHODS)

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def llava(attention: str = "sdpa") -> Any:
    return tiny.model("llava-gqa", attention)


def form(name: str) -> tuple[tiny.Row, ...]:
    return tiny.forms("llava-gqa")[name]


# ---- drafts


def repeating() -> tiny.Row:
    """A question whose last two words were said before, so that prompt lookup has a draft with the first step."""
    (one,) = form("one")
    return tiny.Row(one.family, (*one.ids, 40, 41, 42, 43, 44, 40, 41), one.images)


@every_method
def test_a_draft_in_the_first_step_changes_nothing(method):
    """The prompt and the draft are read in one pass; the method is shown the prompt, and the draft is never pruned."""
    model, row, passes = llava(), repeating(), []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        with foveate.prune(model, METHODS[method]) as pruned:
            plain, trace = generate(model, tiny.batch(row)), pruned.trace
            passes.clear()
            drafted = generate(model, tiny.batch(row), prompt_lookup_num_tokens=3, max_matching_ngram_size=2)
    finally:
        hook.remove()
    assert passes[0] == len(row.ids) + 3  # there was a draft
    assert drafted.sequences.tolist() == plain.sequences.tolist()
    assert pruned.trace.tokens == trace.tokens and pruned.trace.prompt == [len(row.ids)]
    for one, other in zip(drafted.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL, rtol=0)


def test_a_draft_that_names_the_placeholder_is_no_image():
    """The prompt is searched for the last word said, and what followed it there was the image."""
    model, (one,) = llava(), form("one")
    with foveate.prune(model, METHODS["himap"]):
        plain = generate(model, tiny.batch(one)).sequences
    said = int(plain[0, -5])  # the first word of the answer
    row = tiny.Row(one.family, (*one.ids[:3], said, *one.ids[3:]), one.images)
    with foveate.prune(model, METHODS["himap"]):
        plain = generate(model, tiny.batch(row)).sequences
        drafted = generate(model, tiny.batch(row), prompt_lookup_num_tokens=3, max_matching_ngram_size=1).sequences
    assert drafted.tolist() == plain.tolist()


# ---- compiled and wrapped models


@pytest.mark.parametrize("part", ("layer", "decoder"))
@pytest.mark.parametrize("when", ("before", "inside"))
def test_a_model_that_is_compiled_in_parts_is_refused_at_the_call(part, when):
    model, inputs = copy.deepcopy(llava()), tiny.batch(*form("one"))
    module = model.get_decoder() if part == "decoder" else model.get_decoder().layers[4]
    if when == "before":
        module.compile(backend="eager")
    with foveate.prune(model, METHODS["vtw"]):
        if when == "inside":
            module.compile(backend="eager")
        with pytest.raises(NotImplementedError, match="compile the whole model"):
            model(**inputs)


class Adapted(nn.Module):
    """What PEFT puts around a model, as far as it matters here: generation goes to the model inside."""

    def __init__(self, model: Any):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def get_base_model(self) -> Any:
        return self.base_model["model"]

    def generate(self, **kwargs: Any) -> Any:
        return self.get_base_model().generate(**kwargs)


@few_methods
def test_a_model_inside_an_adapter_is_pruned(method):
    model, (row,) = Adapted(llava()), form("one")
    with foveate.prune(model, METHODS[method]) as pruned:
        check_row(generate(model, tiny.batch(row)), 0, reference(row, method))
    assert pruned.trace is not None
    check_row(generate(model, tiny.batch(row)), 0, reference(row, "dense"))


@pytest.mark.parametrize("thing", (nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2)), "a/path", None), ids=repr)
def test_what_is_no_model_is_refused_with_what_to_give_instead(thing):
    with pytest.raises(ValueError, match=r"no transformers model: give the model itself"):
        foveate.prune(thing, "fastv")


def test_a_pipeline_is_pruned_through_its_model(tmp_path):
    model_folder = checkpoints.save_llava(tmp_path)
    pipe = transformers.pipeline("image-text-to-text", model=model_folder, device="cpu")
    content = [
        {"type": "image", "image": Image.new("RGB", (40, 30), "red")},
        {"type": "text", "text": "is there a red"},
    ]
    options = {"return_full_text": False, "generate_kwargs": {"do_sample": False, "max_new_tokens": 5}}
    messages = [{"role": "user", "content": content}]
    dense = pipe(text=messages, **options)
    method = foveate.VTW(layer=1)
    with pytest.raises(ValueError, match=r"such as pipe\.model"):
        foveate.prune(pipe, method)
    with foveate.prune(pipe.model, method) as pruned:
        said = pipe(text=messages, **options)
    inputs = pipe.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with foveate.prune(pipe.model, method):
        ids = pipe.model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert said[0]["generated_text"].strip() == pipe.processor.decode(ids, skip_special_tokens=True)
    assert [len(kept) for kept in pruned.trace.stages[0].kept] == [0] and len(pruned.trace.visual[0]) == 16
    assert pipe(text=messages, **options) == dense


# ---- static caches


@few_methods
@pytest.mark.parametrize("keep_all", (False, True), ids=("no image", "nothing dropped"))
def test_a_static_cache_that_was_reset_forgets_what_was_dropped(method, keep_all):
    model, first = llava(), tiny.batch(*form("ragged"))
    texts = [tiny.row("llava-gqa", text=n, seed=30 + n) for n in (6, 9, 4)]
    then = first if keep_all else tiny.batch(*texts)

    def empty() -> StaticCache:
        return StaticCache(config=model.config.get_text_config(), max_cache_len=first["input_ids"].shape[1] + 8)

    dense = generate(model, then, past_key_values=empty())
    cache = empty()
    with foveate.prune(model, METHODS[method]):
        generate(model, first, past_key_values=cache)
    cache.reset()
    with foveate.prune(model, foveate.Uniform(layer=2, keep=1.0) if keep_all else METHODS[method]):
        out = generate(model, then, past_key_values=cache)
    for one, other in zip(out.logits, dense.logits, strict=True):
        assert torch.equal(one, other)


@few_methods
@pytest.mark.parametrize("attention", ("eager", "sdpa"))
@pytest.mark.parametrize("name", ("one", "left padding", "ragged"))
def test_a_static_cache_may_be_just_as_long_as_the_prompt(method, attention, name):
    """As `generate` makes it for one new token."""
    model, batch = llava(attention), form(name)
    inputs = tiny.batch(*batch)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=inputs["input_ids"].shape[1])
    with foveate.prune(model, METHODS[method]):
        out = generate(model, inputs, max_new_tokens=1, past_key_values=cache)
    for b, row in enumerate(batch):
        wanted = reference(row, method)
        assert int(out.sequences[b, -1]) == wanted.tokens[0]
        torch.testing.assert_close(out.logits[0][b].double(), wanted.logits[0], atol=ATOL, rtol=0)


# ---- numbers


def attention_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> Attention:
    """Plain causal attention (B, H, M, d), as a tapped layer hands it over."""
    length = query.shape[2]
    closed = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = (query.double() @ key.double().mT * scaling).masked_fill(closed, -torch.inf).softmax(-1)
    output = (weights @ value.double()).transpose(1, 2).to(value.dtype)
    return Attention(query, key, value, output, None, torch.ones(query.shape[0], length).bool(), scaling)


def test_products_beyond_the_range_of_half_precision_are_still_probabilities():
    generator = torch.Generator().manual_seed(3)
    query = 40 * torch.randn(1, 2, 12, 64, generator=generator)
    key = (query + torch.randn(1, 2, 12, 64, generator=generator)).half()
    query = query.half()
    products = query.double() @ key.double().mT
    assert products.amax() > torch.finfo(torch.float16).max > products.amax() / 8  # too large until they are scaled
    index = torch.arange(12)[None]
    rows = attention_of(query, key, key, 1 / 8).rows(index)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 2, 12))
    closed = torch.ones(12, 12, dtype=torch.bool).triu(1)
    exact = (products / 8).masked_fill(closed, -torch.inf).softmax(-1)
    assert torch.equal(rows.argmax(-1), exact.argmax(-1))


def test_a_score_that_is_no_number_never_wins():
    nan = float("nan")
    score = torch.tensor([[nan, 3.0, nan, 1.0, 2.0, 9.0], [nan, nan, -torch.inf, 1.0, nan, 0.0]])
    among = torch.tensor([[True] * 5 + [False]] * 2)
    kept = highest(score, among, counts=[2, 2])
    assert kept[0].nonzero().flatten().tolist() == [1, 4]
    assert kept[1, 3] and kept.sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_a_token_that_makes_all_of_the_output_is_critical(seed):
    """What is left without it is rounding error, whose direction must not pass for the output's."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.zeros(1, 4, 30, 16), torch.zeros(1, 4, 30, 16)
    query[:, :, -1, 0], key[:, :, 7, 0] = 1.0, 100.0  # the last row looks at token 7, and at nothing else
    value = torch.randn(1, 4, 30, 16, generator=generator)
    cosine, norm = attention_of(query, key, value, 1.0).influence()
    assert cosine.isfinite().all() and cosine.abs().max() <= 1
    assert abs(float(cosine[0, 7])) < 0.01
    others = torch.arange(30) != 7
    assert (cosine[0, others] > 0.9999).all() and (norm[0, others] < 1e-6).all()


@pytest.mark.parametrize("share", (0.5, 0.9, 0.97))
def test_the_cosine_of_a_token_that_makes_much_of_the_output_is_right(share):
    generator = torch.Generator().manual_seed(1)
    query, key = torch.zeros(1, 4, 30, 16), torch.zeros(1, 4, 30, 16)
    query[:, :, -1, 0], key[:, :, 7, 0] = 1.0, torch.tensor(29 * share / (1 - share)).log()
    value = torch.randn(1, 4, 30, 16, generator=generator)
    cosine, norm = attention_of(query, key, value, 1.0).influence()
    parts = value[0].double() * torch.where(torch.arange(30) == 7, share, (1 - share) / 29)[:, None]  # (H, M, d)
    whole = parts.sum(1).flatten()
    token = parts[:, 7].flatten()
    exact = torch.nn.functional.cosine_similarity(whole - token, whole, dim=0)
    assert float(cosine[0, 7]) == pytest.approx(float(exact), abs=1e-3)
    assert float(norm[0, 7]) == pytest.approx(float(token.norm()), rel=1e-4)


# ---- after an error


def test_an_error_in_the_vision_tower_leaves_no_positions_for_the_next_call():
    model, inputs = llava(), tiny.batch(*form("one"))
    embeds = torch.randn(1, inputs["input_ids"].shape[1], tiny.WIDTH)

    def out_of_memory(*args: Any) -> None:
        raise RuntimeError("out of memory")

    with foveate.prune(model, METHODS["vtw"]):
        hook = model.get_encoder(modality="image").register_forward_pre_hook(out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs)
        hook.remove()
        with pytest.raises(NotImplementedError, match="call the whole"):  # not: pruned by the positions of before
            model.get_decoder()(inputs_embeds=embeds)


# ---- models that cannot be read


def paligemma(softcap: float | None = None) -> Any:
    config = cost_families.paligemma()
    if softcap is not None:
        text = transformers.Gemma2Config(
            **cost_families.TEXT, head_dim=32, attn_logit_softcapping=softcap, layer_types=["full_attention"] * 3
        )
        config = transformers.PaliGemmaConfig(
            text_config=text.to_dict(), vision_config=config.vision_config.to_dict(), image_token_id=100
        )
    return cost_families.model_of(config, "sdpa" if softcap is None else "eager")


SMALL = {
    "fastv": foveate.FastV(layer=1),
    "himap": foveate.HiMAP(layer1=1, layer2=2),
    "visipruner shallow": foveate.VisiPruner(stages=("shallow",), shallow=1),
}


@pytest.mark.parametrize("method", SMALL)
def test_softcapped_attention_is_refused_at_once_where_it_would_be_read(method):
    model = paligemma(softcap=50.0)
    with pytest.raises(NotImplementedError, match=r"softcapped.*VTW"):
        foveate.prune(model, SMALL[method])
    foveate.prune(model, foveate.VTW(layer=1)).remove()


@pytest.mark.parametrize("method", SMALL)
def test_flex_attention_is_refused_at_once_where_it_would_be_read(method):
    model = copy.deepcopy(llava())
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(NotImplementedError, match="attn_implementation='sdpa'"):
        foveate.prune(model, SMALL[method])
    foveate.prune(model, foveate.VTW(layer=1)).remove()


def test_a_decoder_that_is_called_past_the_model_is_refused_and_not_run_dense():
    model, batch = llava(), tiny.batch(*form("one"))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with foveate.prune(model, foveate.VTW(layer=2)):
        with pytest.raises(NotImplementedError, match=r"past LlavaModel.forward.*call the whole LlavaForCond"):
            model.get_decoder()(inputs_embeds=embeds)
        model(**batch)  # the refused call left nothing behind
    model.get_decoder()(inputs_embeds=embeds)


def test_a_decoder_without_rotary_embeddings_is_refused_at_once():
    """BLIP-2's: it says itself where its tokens stand, and would run dense without a word."""
    config = transformers.OPTConfig(
        vocab_size=128, hidden_size=32, ffn_dim=32, num_hidden_layers=3, num_attention_heads=2, word_embed_proj_dim=32
    )
    visual = torch.ones(1, 5, dtype=torch.bool)
    with pytest.raises(NotImplementedError, match=r"OPTForCausalLM take no rotary embeddings.*such as LLaVA"):
        foveate.prune(transformers.OPTForCausalLM(config), foveate.VTW(layer=1), visual=visual)


def test_inputs_of_each_layers_own_are_refused_at_once():
    model = copy.deepcopy(llava())
    model.config.text_config.hidden_size_per_layer_input = 16  # as in Gemma 3n and the small Gemma 4
    with pytest.raises(NotImplementedError, match=r"inputs of its own.*such as Gemma 3"):
        foveate.prune(model, foveate.VTW(layer=1))


def test_flash_attention_is_refused_where_queries_are_scaled_by_position():
    model = tiny_families.model("ministral3", "sdpa")
    with flash(model), pytest.raises(NotImplementedError, match=r"packed sequences.*attn_implementation='sdpa'"):
        foveate.prune(model, foveate.VTW(layer=1))


def test_the_shallow_stage_is_refused_for_a_prompt_that_is_read_in_both_directions():
    model = paligemma()
    with pytest.raises(NotImplementedError, match=r"both directions.*'shallow'"):
        foveate.prune(model, SMALL["visipruner shallow"])
    foveate.prune(model, foveate.VisiPruner(stages=("middle",), shallow=0)).remove()


def test_gradient_checkpointing_is_refused_while_gradients_are_taken():
    model, inputs = copy.deepcopy(llava()), tiny.batch(*form("one"))
    model.gradient_checkpointing_enable()
    with foveate.prune(model, METHODS["fastv"]):
        with torch.enable_grad(), pytest.raises(NotImplementedError, match="gradient_checkpointing_disable"):
            model.train()(**inputs)
        model.eval()(**inputs)
        model.gradient_checkpointing_disable()
        with torch.enable_grad():
            model.train()(**inputs).logits.sum().backward()
    assert model.get_decoder().layers[0].self_attn.q_proj.weight.grad.isfinite().all()


# ---- arguments


BAD = {
    "keep as text": (lambda: foveate.FastV(keep="0.5"), "keep='0.5': give the fraction.*0.0 to 1.0, or a count"),
    "keep as a switch": (lambda: foveate.FastV(keep=True), "keep=True: give the fraction"),
    "keep nothing said": (lambda: foveate.Uniform(keep=None), "keep=None: give the fraction"),
    "keep no number": (lambda: foveate.Random(keep=float("nan")), "keep=nan: give the fraction"),
    "second keep": (lambda: foveate.HiMAP(layer1=1, layer2=2, keep2=True), "keep2=True: give the fraction"),
    "layer as text": (lambda: foveate.FastV(layer="2"), "layer.*'2' is no whole number"),
    "layer as a switch": (lambda: foveate.VTW(layer=True), "layer.*True is no whole number"),
    "seed as text": (lambda: foveate.Random(seed="a"), "seed='a': give a whole number"),
    "seed beyond the generator's": (
        lambda: foveate.Random(seed=2**70),
        "seed=1180591620717411303424: give a whole number",
    ),
    "layer as a fraction": (lambda: foveate.VTW(layer=2.5), "layer.*2.5 is no whole number"),
    "first layer as text": (lambda: foveate.HiMAP(layer1="2", layer2=5), "layer1='2'.*whole number"),
    "second layer as text": (lambda: foveate.HiMAP(layer1=2, layer2="5"), "layer2='5'.*whole number"),
    "shallow below none": (lambda: foveate.VisiPruner(shallow=-1), "shallow=-1: give a whole number, 0 or more"),
    "half a shallow layer": (lambda: foveate.VisiPruner(shallow=2.5), "shallow=2.5: give a whole number"),
    "no exit": (lambda: foveate.VisiPruner(exit_count=0), "exit_count=0: give a whole number, 1 or more"),
    "no threshold": (lambda: foveate.VisiPruner(fire=float("nan")), "fire=nan: give a finite number"),
    "threshold as text": (lambda: foveate.VisiPruner(exit="0.9"), "exit='0.9': give a finite number"),
    "one stage as text": (lambda: foveate.VisiPruner(stages="deep"), "give a tuple, such as .'deep',."),
    "all shallow": (lambda: foveate.VisiPruner(shallow=6), "shallow=6 leaves none of 8 layers.*choose 5 or less"),
    "shallower than deep": (
        lambda: foveate.VisiPruner(stages=("shallow",), shallow=9),
        "visipruner: layer 8 is out of range.*choose 0 to 7",
    ),
}


@pytest.mark.parametrize("field", BAD)
def test_an_argument_that_means_nothing_is_one_error_with_a_remedy(field):
    make, message = BAD[field]
    with pytest.raises(ValueError, match=message):
        foveate.prune(llava(), make())


@pytest.mark.parametrize("visual", (torch.ones(36).bool(), torch.ones(1, 1, 36).bool()), ids=("1-D", "3-D"))
def test_a_visual_mask_of_another_form_is_refused_at_once(visual):
    with pytest.raises(ValueError, match="bool tensor"):
        foveate.prune(tiny.text_model("sdpa"), METHODS["fastv"], visual=visual)


@pytest.mark.parametrize("visual", ([[True]], torch.ones(5, dtype=torch.bool), torch.arange(5)[None], torch.rand(1, 5)))
def test_what_is_no_mask_of_visual_tokens_is_refused_at_once(visual):
    """Positions, or scores, would be read as true wherever they are not zero."""
    with pytest.raises(ValueError, match=r"\(batch, tokens\) bool tensor"):
        foveate.prune(llava(), METHODS["vtw"], visual=visual)
