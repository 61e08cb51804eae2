"""One dial brings every method to the same tokens or the same FLOPs."""

import pytest
from transformers import LlamaConfig

from foveate.methods import METHODS, VTW, FastV, HiMAP, Random, Uniform, VisiPruner
from foveate.suite.dial import Prompt, dial_of, scale_layers, share, solve


def prompt(layers: int) -> Prompt:
    config = LlamaConfig(num_hidden_layers=layers, hidden_size=256, intermediate_size=688, num_attention_heads=4)
    return Prompt(config, layers, visual=144, text=30, system=8, images=0)


def solved(method, kind, target, layers, chosen=()):
    at = prompt(layers)
    method = scale_layers(method, chosen, layers)
    dial = dial_of(method, chosen, layers)
    assert dial is not None
    return solve(dial, kind, target, at), at


@pytest.mark.parametrize("layers", [12, 32])
@pytest.mark.parametrize("target", [0.5, 0.33, 0.2])
@pytest.mark.parametrize("kind", ["keep", "flops"])
@pytest.mark.parametrize("method", [FastV(), HiMAP(), Random(), Uniform(), VTW()])
def test_every_method_comes_as_near_as_tokens_and_layers_allow(method, target, kind, layers):
    if kind == "flops":
        target += 0.15  # the text costs something too
    found, at = solved(method, kind, target, layers)
    step = 1 / layers if method.name == "vtw" else 2 / 144
    assert share(found, kind, at) == pytest.approx(target, abs=step / 2 + 0.001)


def test_the_published_setting_of_himap_lies_on_its_dial():
    method = HiMAP()
    dial = dial_of(method, (), 32)
    assert dial is not None and dial(0.5) == method == scale_layers(method, (), 32)


def test_layers_are_in_proportion_to_the_depth_of_the_model_and_stay_apart():
    assert scale_layers(HiMAP(), (), 12) == HiMAP(layer1=1, layer2=3)
    assert scale_layers(HiMAP(), (), 40) == HiMAP(layer1=2, layer2=10)
    assert scale_layers(HiMAP(), (), 4) == HiMAP(layer1=1, layer2=2)
    assert scale_layers(VisiPruner(), (), 12).shallow == 2


def test_what_the_user_chose_is_not_touched():
    assert scale_layers(HiMAP(layer1=3), {"layer1"}, 32).layer1 == 3
    found, _ = solved(HiMAP(keep1=0.9), "keep", 0.5, 32, {"keep1"})
    assert found.keep1 == 0.9 and found.keep2 != HiMAP().keep2
    assert dial_of(FastV(keep=0.3), {"keep"}, 32) is None and dial_of(VTW(), {"layer"}, 32) is None


def test_visipruner_has_no_dial_and_every_other_method_has_one():
    assert {name for name, method in METHODS.items() if dial_of(method(), (), 32) is None} == {"visipruner"}


def test_a_cost_out_of_reach_is_refused_with_what_can_be_reached():
    with pytest.raises(ValueError, match=r"fastv cannot be brought to 2% .* reaches 8.3% to 100.0%"):
        solved(FastV(), "keep", 0.02, 12)
