"""A blocked edge is blocked under every attention kernel; groups, samples and results are what they say."""

import copy

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tiny
from foveate import flow
from foveate.flow.replay import record
from foveate.flow.result import Result
from foveate.flow.samples import PER_TOKEN
from foveate.pruning.layout import Layout

ANSWERS = ((11, 12), (13, 14), (15, 16))


def batch_of(family: str, form: str) -> flow.Batch:
    prompts = tiny.forms(family)[form]
    return flow.Batch(tiny.batch(*prompts), ANSWERS[: len(prompts)])


def deaf(module, query, key, value, attention_mask, **kwargs):
    """Like a flash kernel: knows padding and causality, hears nothing of 4-D masks."""
    length = query.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None].bool()
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def padding_only(batch_size, q_length, kv_length, *args, attention_mask=None, **kwargs):
    return attention_mask


@pytest.fixture
def deaf_kernel():
    AttentionInterface.register("deaf", deaf)
    AttentionMaskInterface.register("deaf", padding_only)
    yield "deaf"
    del AttentionInterface._global_mapping["deaf"], AttentionMaskInterface._global_mapping["deaf"]


@pytest.mark.parametrize("family", ["llava-gqa", "qwen"])
@pytest.mark.parametrize("analysis", [flow.knockout, flow.windows, flow.withdrawal, flow.merging, flow.saliency])
def test_a_kernel_that_ignores_masks_cannot_undo_an_analysis(analysis, family, deaf_kernel):
    model = copy.deepcopy(tiny.model(family, "sdpa"))
    batch = batch_of(family, "ragged")
    wanted = analysis(model, [batch])
    model.set_attn_implementation({"text_config": deaf_kernel})
    assert model.get_decoder().config._attn_implementation == deaf_kernel
    found = analysis(model, [batch])
    for name in wanted.values:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-3, atol=2e-5)
    if analysis is flow.knockout:
        assert np.nanmax(found["kl"]) > 1e-3
    assert "deaf" in ALL_ATTENTION_FUNCTIONS and model.get_decoder().config._attn_implementation == deaf_kernel


def test_the_control_blocks_as_many_edges_from_the_same_sources():
    dense = record(tiny.model("llava-gqa", "sdpa"), batch_of("llava-gqa", "ragged"))
    layout, visible = dense.layout, dense.visible(0)
    for kind in ("visual-textual", "intra-visual"):
        edges = flow.KINDS[kind].blocked(layout, visible, [1, 2, 3])
        control = flow.KINDS[f"{kind} control"].blocked(layout, visible, [1, 2, 3])
        other = flow.KINDS[f"{kind} control"].blocked(layout, visible, [4, 5, 6])
        assert torch.equal(edges.sum((1, 2)), control.sum((1, 2))) and edges.any()
        assert not torch.equal(edges, control) and not torch.equal(control, other)
        assert not (control & ~visible[:, 0]).any() and not (control & ~layout.visual[:, None]).any()
        assert not control.diagonal(dim1=1, dim2=2).any() and not edges.diagonal(dim1=1, dim2=2).any()


def test_knockout_of_layers_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match="layers 0 to 7"):
        flow.knockout(tiny.model("qwen", "sdpa"), [batch_of("qwen", "one")], layers=[[8]])


def test_unknown_edges_and_no_samples_are_refused_with_a_remedy():
    model, batch = tiny.model("qwen", "sdpa"), batch_of("qwen", "one")
    with pytest.raises(ValueError, match="no kind visual: choose among visual-textual"):
        flow.knockout(model, [batch], kinds=["visual"])
    with pytest.raises(ValueError, match="saliency needs samples"):
        flow.saliency(model, [])
    alone = flow.knockout(model, [batch], kinds=["visual-textual"], layers=[[0]])
    with pytest.raises(ValueError, match="needs intra-visual too"):
        alone.mean(flow.bias_ratio(alone))


def test_a_model_in_training_mode_is_refused():
    model = copy.deepcopy(tiny.model("qwen", "sdpa")).train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        flow.withdrawal(model, [batch_of("qwen", "one")])


def test_padding_on_the_right_is_refused():
    batch = batch_of("llava-gqa", "left padding")
    flipped = {name: x.flip(1) if name in PER_TOKEN else x for name, x in batch.inputs.items()}
    with pytest.raises(ValueError, match="left"):
        flow.allocation(tiny.model("llava-gqa", "sdpa"), [flow.Batch(flipped, batch.answers)])


def test_groups_are_disjoint_each_image_is_apart_and_the_answer_comes_last():
    visual = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    real = torch.tensor([[1] * 9, [0, 0, 1, 1, 1, 1, 1, 1, 1]]).bool()
    answer = torch.tensor([[0] * 7 + [1, 1], [0] * 8 + [1]]).bool()
    layout = Layout.of(visual, real, answer)
    assert [layout.group(name)[0].nonzero().flatten().tolist() for name in
            ("system", "image", "instruction", "answer", "image 0", "image 1")] == [
        [0, 1], [2, 3, 5], [4, 6], [7, 8], [2, 3], [5]]  # fmt: skip
    assert layout.group("system")[1].nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert torch.equal(layout.real, real)
    kept = layout.take(torch.tensor([[0, 3, 5, 6], [5, 6, 7, 8]]), torch.tensor([[True] * 4, [False] + [True] * 3]))
    assert kept.image.tolist() == [[-1, 0, 1, -1], [-1, -1, -1, -1]]
    with pytest.raises(ValueError, match="image 0"):
        layout.group("picture")


@pytest.mark.parametrize("family", ["llava-gqa", "qwen"])
def test_a_prompt_with_some_of_its_answer_said_looks_at_the_next_token(family):
    model, batch = tiny.model(family, "sdpa"), batch_of(family, "ragged")
    said = batch.after(1)
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor([[11], [13], [15]])], dim=1)
    assert torch.equal(said.inputs["input_ids"], ids) and said.targets.tolist() == [12, 14, 16]
    assert said.layout(model).answer.sum(1).tolist() == [1, 1, 1]
    with torch.no_grad():
        grown = model.generate(
            **batch.inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        own = flow.Batch(batch.inputs, grown.sequences[:, -2:].tolist()).after(1)
    torch.testing.assert_close(record(model, own).logits, grown.logits[1], rtol=0, atol=2e-5)


def test_a_result_knows_its_means_and_their_intervals():
    rng = np.random.default_rng(1)
    values = {"a": rng.normal(3.0, 1.0, (400, 5)), "b": rng.normal(2.0, 1.0, (400, 5))}
    values["b"][:200] = np.nan  # half of the samples have no b
    result = Result("test", values, {"a": ("layer",), "b": ("layer",)}, {"layer": list(range(5))}, ["x", "y"] * 200)
    np.testing.assert_allclose(result.mean("a"), values["a"].mean(0))
    np.testing.assert_allclose(result.mean("b"), values["b"][200:].mean(0))
    low, high = result.interval("a")
    np.testing.assert_allclose(high - low, 2 * 1.96 / 20, rtol=0.15)
    low, high = result.interval("b")
    np.testing.assert_allclose(high - low, 2 * 1.96 / np.sqrt(200), rtol=0.2)
    low, high = result.interval(lambda mean: mean["a"] / mean["b"])
    assert (low < 1.5).all() and (high > 1.5).all() and low.shape == (5,)
    assert len(result.of("x")) == 200 and np.array_equal(result.of("x")["a"], values["a"][::2])


def test_a_result_comes_back_from_a_file_and_joins_with_others(tmp_path):
    model = tiny.model("llava-gqa", "sdpa")
    whole = flow.allocation(model, [batch_of("llava-gqa", "one"), batch_of("llava-gqa", "ragged")])
    parts = [flow.allocation(model, [batch_of("llava-gqa", form)]) for form in ("one", "ragged")]
    joined = Result.join(parts)
    joined.save(tmp_path / "part.npz")
    back = Result.load(tmp_path / "part.npz")
    assert (back.name, back.axes, back.labels, back.tasks, back.settings) == (
        whole.name, whole.axes, whole.labels, whole.tasks, whole.settings)  # fmt: skip
    for name in whole.values:
        np.testing.assert_array_equal(back[name], whole[name])
    with pytest.raises(ValueError, match="differ"):
        Result.join([parts[0], flow.allocation(model, [batch_of("llava-gqa", "one")], factor=2.0)])


def test_a_result_is_drawn_with_a_panel_for_each_curve_and_a_line_for_each_group():
    model, batch = tiny.model("llava-gqa", "sdpa"), batch_of("llava-gqa", "ragged")
    found = flow.allocation(model, [batch])
    panels = [panel for panel in found.plot().axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == list(found.axes)
    assert [len(panel.lines) for panel in panels] == [4, 4, 4, 4, 1, 1, 1]
    (panel,) = flow.knockout(model, [batch], ["intra-visual"], [range(3), [1, 4]]).plot("kl").axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0-2", "1,4"]
    with pytest.raises(ValueError, match="no curve heat: choose among last"):
        found.plot("heat")


def test_the_bias_ratio_compares_what_the_two_knockouts_change():
    values = {"jaccard": np.array([[[0.5, 0.9], [0.8, 0.2]]]), "same": np.ones((1, 2, 2))}
    axes = dict.fromkeys(values, ("kind", "layers"))
    result = Result("knockout", values, axes, {"kind": ["visual-textual", "intra-visual"], "layers": [0, 1]}, ["t"])
    np.testing.assert_allclose(result.mean(flow.bias_ratio(result)), np.log([0.2 / 0.5, 0.8 / 0.1]))
