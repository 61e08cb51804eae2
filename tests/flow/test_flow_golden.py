"""Saliency, knockout and the withdrawal curve give the golden numbers."""

from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import golden_cases as golden
from foveate import flow
from foveate.flow.replay import record
from foveate.flow.withdrawal import withdrawn


@cache
def model_of(name: str) -> LlamaForCausalLM:
    config, state = golden.weights(name)
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="sdpa")
    model.load_state_dict(state)
    return model.eval()


def batch_of(name: str, target: int = 0) -> flow.Batch:
    embeds = golden.embeddings(name)[None]
    visual = torch.zeros(1, embeds.shape[1], dtype=torch.bool)
    visual[0, golden.visual_positions(name)] = True
    return flow.Batch({"inputs_embeds": embeds}, [[target]], visual=visual)


@pytest.mark.parametrize("reduce", ["signed", "meanabs"])
@pytest.mark.parametrize("name", golden.names("saliency"))
def test_saliency_gives_the_golden_curves(name, reduce):
    t = golden.tensors(name)
    found = flow.saliency(model_of(name), [batch_of(name, int(t["target_id"]))], reduce=reduce)
    assert found["loss"][0] == pytest.approx(float(t["loss"]), rel=1e-5)
    for curve in ("S_sys", "S_img", "S_ins", "S_vv", "S_vt"):
        np.testing.assert_allclose(found[curve][0], t[f"{curve}.{reduce}"], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", golden.names("knockout"))
def test_knockout_gives_the_golden_consistencies(name):
    t, model = golden.tensors(name), model_of(name)
    kinds = {"text_to_image": "visual-textual", "image_to_image": "intra-visual"}
    for k, described in enumerate(golden.CASES[name]["parameters"]["runs"]):
        edge, _, window = described.split()
        first, last = map(int, window.split(".."))
        layers = range(first, last + 1)
        found = flow.knockout(model, [batch_of(name)], kinds=[kinds[edge]], layers=[layers])
        assert found["jaccard"][0, 0, 0] == pytest.approx(float(t["jaccard_top5"][k]), abs=1e-12)
        dense = record(model, batch_of(name))
        torch.testing.assert_close(dense.logits[0].double(), t["dense_logits"], rtol=0, atol=5e-4)
        blocked = flow.KINDS[kinds[edge]].blocked(dense.layout, dense.visible(0), [0])
        torch.testing.assert_close(dense.knocked(blocked, layers)[0].double(), t["logits"][k], rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", golden.names("vtw_kl", "vtw_findk"))
@torch.no_grad()
def test_withdrawal_gives_the_golden_curve_and_choice_of_layer(name):
    t, model = golden.tensors(name), model_of(name)
    found = flow.withdrawal(model, [batch_of(name)])
    at = t["k_values"].tolist()
    np.testing.assert_allclose(found["kl"][0, at], t["kl"], **golden.KL)
    logits = withdrawn(record(model, batch_of(name)))[at, 0]
    torch.testing.assert_close(logits, t["withdrawn_last_logits"], rtol=0, atol=golden.ATOL_LOGITS)
    for example in golden.CASES[name].get("checks", {}).get("k_star_examples", []):
        assert flow.search(found, eta=example["eta"]) == example["k_star"]
