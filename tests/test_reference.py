"""The slow reference itself: it is the dense model when nothing is pruned, it computes the published numbers, and a
wrong reading of a rule would be noticed."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import golden_cases as golden
import tiny
from reference import flow, rows, rules
from reference.decoder import Decoder
from reference.rows import Input

PRUNING = golden.names("himap", "fastv_inplace", "fastv_hf", "vtw", "visi")


@cache
def golden_input(name: str) -> Input:
    config, state = golden.weights(name)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(state)
    prompt = rules.Prompt(golden.CASES[name]["prompt_length"], tuple(golden.visual_positions(name)))
    embeds = golden.embeddings(name).double()
    return Input(Decoder.of(model), prompt, embeds, torch.arange(prompt.length))


def rule_of(name: str) -> rules.Rule:
    case = golden.CASES[name]
    p = case["parameters"]
    match case["method"]:
        case "himap":
            return rules.HiMAP(p["K1"], p["n1"], p["K2"], p["n2"])
        case "fastv_inplace":
            return rules.FastV(p["K"], p["keep"])
        case "fastv_hf":
            return rules.FastV(p["K"], 1 - p["ratio"])
        case "vtw":
            return rules.VTW(p["K"])
        case "visi":
            return rules.VisiPruner(
                stages=tuple(p["mode"]),
                shallow=p["shallow_mid_layer"],
                fire=p.get("layer_threshold", 0.5),
                influence=p.get("tokens_threshold", 0.2),
                exit=p["deep_cos_threshold"],
                exit_count=p["exit_count"],
                first_layer={"7b": "merge", "13b": "halve"}[p["size_rule"]],
            )
    raise KeyError(case["method"])


def differences(name: str, given: Input, rule: rules.Rule) -> dict[str, float]:
    """How far the reference is from a case, in units of the case's tolerance; kept sets and layers count 0 or inf."""
    t = golden.tensors(name)
    source = "decode" if "decode.logits" in t else "ref.decode"
    out = rows.forced(given, rule, t[f"{source}.next_ids"].tolist())
    found = {
        "logits": float((out.logits - t[f"{source}.logits"]).abs().max()) / golden.ATOL_LOGITS,
        "last logits": float((out.logits[0] - t["last_logits"]).abs().max()) / golden.ATOL_LOGITS,
        "hidden": float((out.hidden - t["hidden_last"]).abs().max()) / golden.ATOL_LOGITS,
    }
    lengths = [given.prompt.length - len(given.prompt.visual) + len(alive) for alive in out.alive]
    exact = {"lengths": lengths == t["kv_lengths"].tolist()}
    if "kept" in t:
        exact["kept"] = t["kept"].tolist() in list(out.cuts.values())
    if "kept.stage1" in t:
        exact["kept"] = list(out.cuts.values()) == [t["kept.stage1"].tolist(), t["kept.stage2"].tolist()]
    if "filter.layer" in t:
        exact["filter layer"] = out.rule.filter_layer == int(t["filter.layer"])
    if "filter.layer" in t and exact["filter layer"]:
        fired = out.rule.filter_layer
        for key, values, atol in (("cos", out.rule.cosines, golden.ATOL_COS), ("c_norm", out.rule.norms, 5e-4)):
            mine = torch.tensor(list(values[fired].values()))
            found[key] = float((mine - t[f"filter.{key}"]).abs().max()) / atol
    if "exit.layer" in t:
        exact["exit layer"] = [layer for layer, kept in out.cuts.items() if not kept] == [int(t["exit.layer"])]
        exact["counted"] = out.rule.counted == t["deep.layers"][t["deep.counted"]].tolist()
    return found | {key: 0.0 if right else float("inf") for key, right in exact.items()}


@pytest.mark.parametrize("name", PRUNING)
@torch.no_grad()
def test_the_reference_gives_the_published_numbers(name):
    for what, difference in differences(name, golden_input(name), rule_of(name)).items():
        assert difference < 0.2, what  # a fifth of the tolerance: float64 here, float32 there


@pytest.mark.parametrize("name", golden.names("himap", "fastv_inplace", "fastv_hf"))
@torch.no_grad()
def test_the_reference_scores_as_the_published_code_does(name):
    given, rule, t = golden_input(name), rule_of(name), golden.tensors(name)
    out = rows.pruned_run(given, rule, [])
    visual = list(given.prompt.visual)
    if isinstance(rule, rules.FastV):
        pairs = [(rule.scores(out.run.layers[: rule.layer], given.prompt, visual), t["score"])]
    else:
        kept = out.alive[rule.layer1]
        pairs = [
            (rule.scores1(out.run.layers[: rule.layer1], given.prompt, visual), t["score.stage1"]),
            (rule.scores2(out.run.layers[: rule.layer2], given.prompt, kept), t["score.stage2"]),
        ]
    for mine, published in pairs:
        torch.testing.assert_close(torch.tensor(list(mine.values())), published, rtol=golden.RTOL_SCORES, atol=0)


def renumbered(given: Input) -> Input:
    """The instruction takes the image's positions, as if what survives had been counted anew."""
    gap = len(given.prompt.visual)
    positions = given.positions.clone()
    positions[given.prompt.visual[-1] + 1 :] -= gap
    return replace(given, positions=positions)


class LateFastV(rules.FastV):
    """Scores with the attention of the layer before the right one."""

    def scores(self, before, prompt, alive):
        return super().scores(before[:-1], prompt, alive)


class HeadMaximum(rules.FastV):
    def scores(self, before, prompt, alive):
        peaks = [SimpleNamespace(attention=layer.attention.amax(0, keepdim=True)) for layer in before]
        return super().scores(peaks, prompt, alive)


class FirstTextRowsOnly(rules.HiMAP):
    def scores1(self, before, prompt, alive):
        mean = before[-1].attention.mean(0)
        return {v: float(mean[prompt.instruction[0], v]) for v in alive}


class Renormalised(rules.VisiPruner):
    def edit(self, layer, attention, prompt):
        edited = super().edit(layer, attention, prompt)
        return edited / edited.sum(-1, keepdim=True)


WRONG = {
    "positions renumbered": ("vtw_k5_a64", renumbered, rule_of),
    "cut one layer late": ("vtw_k5_a64", None, lambda name: rules.VTW(6)),
    "attention of another layer": ("fastv_hf_k3_r75_a64", None, lambda name: LateFastV(3, 0.25)),
    "all rows instead of the last": ("fastv_hf_k2_r75_a64", None, lambda name: rules.FastV(2, 0.25, rows="all")),
    "head maximum": ("fastv_hf_k2_r50_b64", None, lambda name: HeadMaximum(2, 0.5)),
    "half rounded up": ("fastv_hf_round_a50", None, lambda name: rules.FastV(2, 13)),
    "one text row": ("himap_k2_k6_a64", None, lambda name: FirstTextRowsOnly(2, 32, 6, 8)),
    "row sums": ("himap_k2_k8_b64", None, lambda name: replace(rule_of(name), deep="sends")),
    "columns normalised": ("himap_k2_k8_b64", None, lambda name: replace(rule_of(name), causal_normalised=True)),
    "no shallow edit": ("visi_s_7b_b576", None, lambda name: replace(rule_of(name), stages=())),
    "the other first layer": ("visi_s_7b_b576", None, lambda name: replace(rule_of(name), first_layer="halve")),
    "shallow renormalised": ("visi_s_13b_b576", None, lambda name: Renormalised(**vars(rule_of(name)))),
    "shallow one layer longer": ("visi_smd_7b_b576", None, lambda name: replace(rule_of(name), shallow=4)),
    "exit only if consecutive": ("visi_smd_7b_b576", None, lambda name: replace(rule_of(name), consecutive=True)),
    "no exit": ("visi_md_7b_b576", None, lambda name: replace(rule_of(name), stages=("middle",))),
}


@pytest.mark.parametrize("wrong", WRONG)
@torch.no_grad()
def test_a_wrong_reading_of_a_rule_does_not_give_the_published_numbers(wrong):
    name, spoil, rule = WRONG[wrong]
    given = golden_input(name)
    found = differences(name, spoil(given) if spoil else given, rule(name))
    assert max(found.values()) > 20


@pytest.mark.parametrize("name", golden.names("saliency"))
def test_reference_saliency_gives_the_golden_numbers(name):
    given, t = golden_input(name), golden.tensors(name)
    loss, maps = flow.saliency(given, int(t["target_id"]))
    assert loss == pytest.approx(float(t["loss"]), rel=1e-8)
    for variant, reduce in {"signed": lambda m: m.sum(0).abs(), "meanabs": lambda m: m.abs().mean(0)}.items():
        reduced = [reduce(m) for m in maps]
        for layer in (0, 5, 11):
            published = t[f"I.{variant}.layer{layer}"]
            torch.testing.assert_close(reduced[layer].float(), published, rtol=1e-5, atol=1e-9)
        for layer, saliency_map in enumerate(reduced):
            for group, value in flow.group_means(saliency_map, given).items():
                assert value == pytest.approx(float(t[f"{group}.{variant}"][layer]), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", golden.names("knockout"))
@torch.no_grad()
def test_reference_knockout_gives_the_golden_numbers(name):
    given, t = golden_input(name), golden.tensors(name)
    dense = set(t["dense_top5"].tolist())
    for k, described in enumerate(golden.CASES[name]["parameters"]["runs"]):
        edge, _, window = described.split()
        first, last = map(int, window.split(".."))
        logits = flow.knockout(given, edge, first, last)
        torch.testing.assert_close(logits, t["logits"][k], rtol=0, atol=1e-8)
        top5 = logits.topk(5).indices.tolist()
        assert top5 == t["top5"][k].tolist()
        jaccard = len(dense & set(top5)) / len(dense | set(top5))
        assert jaccard == pytest.approx(float(t["jaccard_top5"][k]), abs=1e-12)


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_without_a_rule_the_reference_is_the_dense_model(family, form):
    model, batch = tiny.model(family, "eager"), tiny.forms(family)[form]
    dense = model.generate(
        **tiny.batch(*batch), max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    for b, row in enumerate(batch):
        given = rows.of_row(model, row, tiny.batch(row), tiny.IMAGE)
        out = rows.greedy(given, rules.Rule(), 5)
        assert out.tokens == dense.sequences[b, -5:].tolist()
        for step, logits in enumerate(dense.logits):
            torch.testing.assert_close(logits[b].double(), out.logits[step], atol=2e-5, rtol=0)


@torch.no_grad()
def test_reference_attention_is_what_an_eager_model_returns():
    for family in tiny.FAMILIES:
        model = tiny.model(family, "eager")
        row = tiny.forms(family)["ragged"][0]
        given = rows.of_row(model, row, tiny.batch(row), tiny.IMAGE)
        mine = rows.pruned_run(given, rules.Rule(), []).run.layers
        for layer, attention in zip(mine, model(**tiny.batch(row), output_attentions=True).attentions, strict=True):
            torch.testing.assert_close(attention[0].double(), layer.attention, atol=1e-5, rtol=0)
