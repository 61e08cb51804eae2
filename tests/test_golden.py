"""The library computes what the published implementations computed: same tokens kept, same logits, same caches."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import foveate
import golden_cases as golden

PRUNING = golden.names("dense", "himap", "fastv_inplace", "fastv_hf", "vtw", "visi")
WITHDRAWAL = golden.names("vtw_kl", "vtw_findk")
ATTENTION = ["sdpa", "eager"]


def method_of(name: str):
    """The library's method for a case of the index; None for a dense one."""
    case = golden.CASES[name]
    p = case["parameters"]
    match case["method"]:
        case "dense":
            return None
        case "himap":
            return foveate.HiMAP(layer1=p["K1"], keep1=p["n1"], layer2=p["K2"], keep2=p["n2"])
        case "fastv_inplace":
            return foveate.FastV(layer=p["K"], keep=p["keep"])
        case "fastv_hf":
            return foveate.FastV(layer=p["K"], keep=1 - p["ratio"])
        case "vtw":
            return foveate.VTW(layer=p["K"])
        case "visi":
            thresholds = {"fire": "layer_threshold", "influence": "tokens_threshold", "exit": "deep_cos_threshold"}
            return foveate.VisiPruner(
                stages=tuple(p["mode"]),
                shallow=p["shallow_mid_layer"],
                exit_count=p["exit_count"],
                first_layer={"7b": "merge", "13b": "halve"}[p["size_rule"]],
                **{field: p[key] for field, key in thresholds.items() if key in p},
            )
    raise KeyError(case["method"])


def expected_cuts(name: str) -> list[tuple[int, list[int]]]:
    """(layer, visual positions that survive from it on), as the case's tensors say it."""
    case, t = golden.CASES[name], golden.tensors(name)
    p = case["parameters"]
    match case["method"]:
        case "dense":
            return []
        case "himap":
            return [(p["K1"], t["kept.stage1"].tolist()), (p["K2"], t["kept.stage2"].tolist())]
        case "fastv_inplace" | "fastv_hf":
            return [(p["K"], t["kept"].tolist())]
        case "vtw":
            return [(p["K"], [])]
        case "visi":
            cuts = []
            if "kept" in t:
                cuts.append((int(t["filter.layer"]) + 1, t["kept"].tolist()))
            if "exit.layer" in t:
                cuts.append((int(t["exit.layer"]), []))
            return cuts
    raise KeyError(case["method"])


def kv_lengths(cache) -> list[int]:
    return [layer.get_seq_length() for layer in cache.layers]


@cache
def llama(weights_file: str, attention: str) -> LlamaForCausalLM:
    name = next(n for n, case in golden.CASES.items() if case["weights_file"] == weights_file)
    config, state = golden.weights(name)
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation=attention)
    model.load_state_dict(state)
    return model.eval()


@cache
def llava(weights_file: str, attention: str) -> LlavaForConditionalGeneration:
    """The same decoder inside a LLaVA whose vision tower is never asked."""
    text = llama(weights_file, attention)
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=tower, text_config=text.config, image_token_id=127, vision_feature_layer=-1)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def check_trace(trace, name: str) -> None:
    visual, length = golden.visual_positions(name), golden.CASES[name]["prompt_length"]
    cuts = expected_cuts(name)
    assert [(stage.layer, stage.kept[0].tolist()) for stage in trace.stages] == cuts
    assert trace.visual[0].tolist() == visual
    assert int(trace.prompt[0]) == length
    assert [int(n[0]) for n in trace.tokens] == [
        length - len(visual) + len([kept for layer, kept in [(0, visual), *cuts] if layer <= i][-1]) for i in range(12)
    ]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", PRUNING)
@torch.no_grad()
def test_embeddings_with_a_visual_mask_give_the_published_numbers(name, attention):
    t, method = golden.tensors(name), method_of(name)
    model = llama(golden.CASES[name]["weights_file"], attention)
    embeds = golden.embeddings(name)[None]
    visual = (t["input_ids"] == 127)[None]
    if method is None:
        check_prefill_and_decode(model, embeds, t)
        return
    with foveate.prune(model, method, visual=visual) as pruned:
        check_prefill_and_decode(model, embeds, t)
        check_trace(pruned.trace, name)
    dense = model(inputs_embeds=embeds).logits[0, -1]
    assert (dense - t["last_logits"]).abs().max() > 100 * golden.ATOL_LOGITS  # the case can tell pruned from dense


def check_prefill_and_decode(model, embeds, t) -> None:
    out = model(inputs_embeds=embeds, output_hidden_states=True, use_cache=True)
    close = {"atol": golden.ATOL_LOGITS, "rtol": 0}
    torch.testing.assert_close(out.logits[0, -1], t["last_logits"], **close)
    torch.testing.assert_close(out.hidden_states[-1][0, -1], t["hidden_last"], **close)
    assert kv_lengths(out.past_key_values) == t["kv_lengths"].tolist()

    source = "decode" if "decode.logits" in t else "ref.decode"
    ids, logits = t[f"{source}.next_ids"], t[f"{source}.logits"]
    for step, token in enumerate(ids, start=1):
        assert int(out.logits[0, -1].argmax()) == int(token)
        out = model(input_ids=token.view(1, 1), past_key_values=out.past_key_values, use_cache=True)
        torch.testing.assert_close(out.logits[0, -1], logits[step], **close)
    assert kv_lengths(out.past_key_values) == (t["kv_lengths"] + len(ids)).tolist()
    if "decode.kv_lengths" in t:
        assert kv_lengths(out.past_key_values) == t["decode.kv_lengths"].tolist()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", [n for n in PRUNING if golden.CASES[n]["method"] != "dense"])
@torch.no_grad()
def test_a_llava_around_the_same_decoder_finds_the_image_by_its_token_id(name, attention, monkeypatch):
    t = golden.tensors(name)
    model = llava(golden.CASES[name]["weights_file"], attention)

    def features_of_the_case(pixel_values, **kwargs):  # generate() reads the name `pixel_values` from this signature
        return SimpleNamespace(pooler_output=[t["image_features"]])

    monkeypatch.setattr(model.model, "get_image_features", features_of_the_case)
    with foveate.prune(model, method_of(name)) as pruned:
        out = model.generate(
            input_ids=t["input_ids"][None],
            attention_mask=torch.ones_like(t["input_ids"])[None],
            pixel_values=torch.zeros(1, 3, 28, 28),
            max_new_tokens=5,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    check_trace(pruned.trace, name)
    source = "decode" if "decode.logits" in t else "ref.decode"
    assert out.sequences[0, -5:-1].tolist() == t[f"{source}.next_ids"].tolist()
    torch.testing.assert_close(torch.cat(list(out.logits)), t[f"{source}.logits"], atol=golden.ATOL_LOGITS, rtol=0)
    assert kv_lengths(out.past_key_values) == (t["kv_lengths"] + 4).tolist()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", WITHDRAWAL)
@torch.no_grad()
def test_withdrawal_at_every_layer_gives_the_published_divergence_and_layer(name, attention):
    t = golden.tensors(name)
    model = llama(golden.CASES[name]["weights_file"], attention)
    embeds, visual = golden.embeddings(name)[None], (t["input_ids"] == 127)[None]
    full = model(inputs_embeds=embeds).logits[0, -1]
    torch.testing.assert_close(full, t["full_last_logits"], atol=golden.ATOL_LOGITS, rtol=0)
    curve = {}
    for row, layer in enumerate(t["k_values"].tolist()):
        with foveate.prune(model, foveate.VTW(layer=layer), visual=visual):
            withdrawn = model(inputs_embeds=embeds).logits[0, -1]
        torch.testing.assert_close(withdrawn, t["withdrawn_last_logits"][row], atol=golden.ATOL_LOGITS, rtol=0)
        log_p, log_q = withdrawn.double().log_softmax(-1), full.double().log_softmax(-1)
        curve[layer] = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(torch.stack(list(curve.values())).float(), t["kl"], **golden.KL)
    if "findk.kl" in t:
        searched = torch.stack([curve[k] for k in t["findk.k_values"].tolist()]).float()
        torch.testing.assert_close(searched, t["findk.kl"], **golden.KL)
    for example in golden.CASES[name]["checks"].get("k_star_examples", []):
        chosen = next(k for k, kl in curve.items() if k >= 5 and kl <= example["eta"])
        assert chosen == example["k_star"]
