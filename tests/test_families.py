"""Every other family that can be pruned: dropped equals masked on the model itself, a padded row equals that row alone.

Here the masking is done by hooks on an eager model of the same family, whatever its positions, masks and layers are;
what is kept comes from the trace, and FastV's choice is checked against the attention that the eager model returns.
"""

from contextlib import contextmanager
from functools import cache

import cost_families
import pytest
import torch

import foveate
import tiny
from contracts import generate

ATOL = 1e-4
FAMILIES = [name for name in cost_families.FAMILIES if name != "paligemma"]  # its own eager and sdpa runs disagree
METHODS = {
    "fastv": foveate.FastV(layer=1, keep=0.5),
    "vtw": foveate.VTW(layer=2),
    "himap": foveate.HiMAP(layer1=1, keep1=0.5, layer2=2, keep2=0.25),
    "visipruner": foveate.VisiPruner(stages=("middle",), shallow=0, fire=0.999, influence=0.3),
}

every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("method", METHODS)

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@cache
def model(family: str, attention: str):
    config = cost_families.gemma3(window=512) if family == "gemma3" else cost_families.FAMILIES[family][0]()
    net = cost_families.model_of(config, attention)
    tiny.randomise(net)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    return net


@cache
@torch.no_grad()
def prompt(family: str, text: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A prompt with as many placeholders as the family's image has features."""
    some = cost_families.prompt(1, family)
    picture = {key: some[key] for key in ("pixel_values", "image_sizes", "image_grid_thw") if key in some}
    features = model(family, "eager").get_image_features(**picture)
    features = getattr(features, "pooler_output", features)
    visual = sum(feature.numel() // feature.shape[-1] for feature in features)
    return cost_families.prompt(visual, family, text=text, seed=seed)


@contextmanager
def hidden(net, cuts: dict[int, list[int]]):
    """From each layer of `cuts` on, nobody looks at these columns of the prompt."""

    def close(columns):
        def hook(module, args, kwargs):
            mask = kwargs["attention_mask"].clone()  # (B, 1, queries, keys), floats to add
            mask[..., columns] = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask}

        return hook

    hooks = []
    for i, layer in enumerate(net.get_decoder().layers):
        columns = sorted({column for at, gone in cuts.items() if at <= i for column in gone})
        if columns:
            hooks.append(layer.register_forward_pre_hook(close(columns), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("attention, cache", (("sdpa", "dynamic"), ("eager", "dynamic"), ("sdpa", "static")))
@every_method
@every_family
def test_dropped_equals_masked_in_every_family(family, method, attention, cache):
    inputs, net, eager = prompt(family, text=7), model(family, attention), model(family, "eager")
    options = {"cache_implementation": "static"} if cache == "static" else {}
    with foveate.prune(net, METHODS[method]) as pruned:
        if family == "gemma3" and cache == "static":  # layers of two lengths, and one mask for both
            with pytest.raises(NotImplementedError, match="dynamic cache"):
                generate(net, inputs, **options)
            return
        out = generate(net, inputs, **options)
    visual = (inputs["input_ids"][0] == cost_families.IMAGE).nonzero().flatten()
    assert pruned.trace.visual[0].tolist() == visual.tolist()
    cuts = {stage.layer: sorted(set(visual.tolist()) - set(stage.kept[0].tolist())) for stage in pruned.trace.stages}
    assert any(cuts.values()) or method == "visipruner"
    with hidden(eager, cuts):
        masked = generate(eager, inputs)
    for one, other in zip(out.logits, masked.logits, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL, rtol=0)
    if method == "fastv":
        scores = eager(**inputs, output_attentions=True).attentions[0].mean(1)[0, -1, visual]
        best = scores.topk(round(0.5 * len(visual))).indices
        assert pruned.trace.stages[0].kept[0].tolist() == sorted(visual[best].tolist())
        dense = generate(eager, inputs)
        assert (out.logits[0] - dense.logits[0]).abs().max() > 100 * ATOL


@every_method
@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@every_family
def test_a_padded_row_equals_that_row_alone_in_every_family(family, attention, method):
    net, short, long = model(family, attention), prompt(family, text=7), prompt(family, text=12, seed=1)
    both = {}
    for key, value in short.items():
        per_token = key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        both[key] = torch.cat([torch.nn.functional.pad(value, (5, 0)) if per_token else value, long[key]])
    with foveate.prune(net, METHODS[method]):
        together = generate(net, both)
        for b, alone in enumerate((generate(net, short), generate(net, long))):
            for batched, single in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(batched[b], single[0], atol=ATOL, rtol=0)


def test_a_prompt_beyond_a_sliding_window_is_refused():
    config = cost_families.gemma3(window=16)
    net = cost_families.model_of(config, "sdpa")
    with (
        foveate.prune(net, METHODS["fastv"]),
        pytest.raises((ValueError, NotImplementedError), match=r"(?i)sliding window"),
    ):
        net(**prompt("gemma3", text=7))
