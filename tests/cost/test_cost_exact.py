"""`cost.prefill` and `cost.decode` against torch's own counter on real forwards of tiny models."""

import time

import pytest
import torch
import transformers as T
from cost_families import FAMILIES, TEXT, counted, decoder_config, gemma3, llava, model_of, prompt
from torch.utils.flop_counter import FlopCounterMode

import foveate
from foveate import cost
from foveate.cost.shapes import GATED, MIXTURES, PLAIN

CLOSE = 5e-4  # relative; today they agree to the last digit


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_of_an_image_prompt_costs_what_torch_counts(family, attn):
    make, _, extra = FAMILIES[family]
    config = make()
    size = next(iter(extra.values()), [None])[0]
    inputs = prompt(cost.visual_tokens(config, size), family)
    model = model_of(config, attn)

    real = counted(lambda: model(**inputs, logits_to_keep=1))
    length = inputs["input_ids"].shape[1]
    ours = cost.prefill(config, [length] * 3, images=cost.images_of(config, inputs))

    assert ours.total == pytest.approx(real, rel=CLOSE)
    assert ours.vision > 0
    assert ours.projector > 0


@pytest.mark.parametrize("kind", sorted(GATED | PLAIN | MIXTURES))
def test_every_decoder_that_is_listed_costs_what_torch_counts(kind):
    config = decoder_config(kind)
    model = model_of(config, "eager")
    ids = torch.randint(5, 90, (2, 24))
    head = {"logits_to_keep": 1} if hasattr(model, "lm_head") else {}

    ours = cost.prefill(config, [[24, 24]] * 3, logits=1 if head else 0)

    assert ours.total == pytest.approx(counted(lambda: model(ids, **head)), rel=CLOSE)


def test_layers_of_different_lengths_cost_their_share_each():
    config = llava()
    model = model_of(config, "sdpa").model.language_model
    real = {n: counted(lambda n=n: model(torch.full((1, n), 5))) for n in (24, 9)}

    ours = cost.prefill(config, [24, 9, 9], images=0, logits=0)

    assert ours.total == pytest.approx((real[24] + 2 * real[9]) / 3, rel=CLOSE)


@pytest.mark.parametrize("window", [None, 16, 40])
def test_decode_steps_and_cache_size_are_those_of_a_real_cache(window):
    config = (gemma3(window) if window else llava()).text_config
    model = model_of(config, "sdpa")
    cache = T.DynamicCache(config=config)
    with torch.no_grad():
        model(torch.full((2, 30), 5), past_key_values=cache)

    def held():
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    assert held() == cost.kv_bytes(config, [[30, 30]] * 3, torch.float32)
    real = [counted(lambda: model(torch.full((2, 1), 5), past_key_values=cache)) for _ in range(3)]

    assert sum(real) == pytest.approx(cost.decode(config, [[31, 31]] * 3, steps=3).total, rel=CLOSE)
    assert held() == cost.kv_bytes(config, [[33, 33]] * 3, "float32")


def test_llava_7b_costs_what_torch_counts_on_the_meta_device():
    config = T.LlavaConfig()
    with torch.device("meta"):
        model = T.LlavaForConditionalGeneration(config)
        pixels, embeds = torch.empty(1, 3, 336, 336), torch.empty(1, 673, 4096)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.get_image_features(pixels)
        model(inputs_embeds=embeds, logits_to_keep=1)

    assert cost.prefill(config, [673] * 32).total == pytest.approx(counter.get_total_flops(), rel=CLOSE)


def test_a_7b_config_is_costed_in_milliseconds():
    config = T.LlavaConfig()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        cost.prefill(config, [673] * 32)
        times.append(time.perf_counter() - start)

    assert min(times) < 0.02


def test_samples_of_a_batch_add_up():
    config = llava()
    together = cost.prefill(config, [[30, 12], [20, 12], [20, 5]], images=2, scored={1: [3, 1]})
    apart = cost.prefill(config, [30, 20, 20], scored={1: 3}) + cost.prefill(config, [12, 12, 5], scored={1: 1})

    assert together == apart


def test_scoring_a_row_costs_its_products_with_all_keys_of_the_layer():
    flops = cost.prefill(llava(), [40, 30, 20], scored={0: 1, 2: 5})

    heads, head_dim = TEXT["num_attention_heads"], TEXT["hidden_size"] // TEXT["num_attention_heads"]
    assert flops.scoring == 2 * heads * head_dim * (1 * 40 + 5 * 20)
    assert flops.total == cost.prefill(llava(), [40, 30, 20]).total + flops.scoring


def test_images_zero_leaves_the_tower_out_and_a_text_config_has_none():
    config = llava()

    assert cost.prefill(config, [20] * 3, images=0) == cost.prefill(config.text_config, [20] * 3)
    assert cost.prefill(config, [20] * 3, images=3).vision == 3 * cost.prefill(config, [20] * 3).vision


def test_a_shape_by_hand_costs_what_its_config_does():
    config = llava()
    by_hand = cost.prefill(cost.decoder_shape(config), [20] * 3, vision=cost.vision_shape(config))

    assert by_hand == cost.prefill(config, [20] * 3)


def test_what_cannot_be_costed_is_refused_with_a_remedy():
    with pytest.raises(NotImplementedError, match="DecoderShape"):
        cost.prefill(T.MambaConfig(num_hidden_layers=2), [5, 5])
    with pytest.raises(NotImplementedError, match="images=0"):
        cost.prefill(T.LlavaNextVideoConfig(), [5] * 32)
    assert cost.prefill(T.LlavaNextVideoConfig(), [5] * 32, images=0).vision == 0
    with pytest.raises(ValueError, match="3 layers"):
        cost.prefill(llava(), [5, 5])
    with pytest.raises(ValueError, match="Scored layer 3"):
        cost.prefill(llava(), [5, 5, 5], scored={3: 1})
    with pytest.raises(ValueError, match="patch grid"):
        cost.prefill(FAMILIES["qwen2.5-vl"][0](), [5, 5, 5])
    with pytest.raises(ValueError, match="bfloat16"):
        cost.kv_bytes(llava(), [5, 5, 5], "nf4")


@pytest.mark.parametrize(
    "method",
    [
        foveate.FastV(layer=1, keep=0.5),
        foveate.FastV(layer=2, keep=3, rows="all"),
        foveate.HiMAP(layer1=1, keep1=0.5, layer2=2, keep2=0.25),
        foveate.VTW(layer=2),
        foveate.VisiPruner(stages=("middle", "deep"), shallow=0),
        foveate.Random(layer=1, keep=0.25),
        foveate.Uniform(layer=1, keep=0.25),
    ],
    ids=lambda method: method.name,
)
def test_a_pruned_prefill_with_its_scoring_costs_what_torch_counts(method):
    config, inputs = llava(), prompt(16, "llava")
    model = model_of(config, "sdpa")
    tower = cost.prefill(config, [0] * 3, logits=0)

    with foveate.prune(model, method) as pruned:
        real = counted(lambda: model(**inputs, logits_to_keep=1))

    assert bool(pruned.trace.spared) == bool(pruned.trace.stages)
    assert pruned.trace.flops - pruned.trace.spared + tower.total == pytest.approx(real, rel=CLOSE)


# (Gemma 3's prompt outgrows its window here, which the engine refuses.)
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gemma3"}))
def test_a_pruned_prefill_of_every_family_costs_what_torch_counts(family):
    make, _, extra = FAMILIES[family]
    config = make()
    inputs = prompt(cost.visual_tokens(config, next(iter(extra.values()), [None])[0]), family)
    model = model_of(config, "sdpa")
    tower = cost.prefill(config, [0] * 3, images=cost.images_of(config, inputs), logits=0)

    with foveate.prune(model, foveate.HiMAP(layer1=1, keep1=0.5, layer2=2, keep2=0.25)) as pruned:
        real = counted(lambda: model(**inputs, logits_to_keep=1))

    assert bool(pruned.trace.spared) == bool(pruned.trace.stages)
    assert pruned.trace.flops - pruned.trace.spared + tower.total == pytest.approx(real, rel=CLOSE)
