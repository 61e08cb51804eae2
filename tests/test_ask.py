"""The job behind `foveate ask`: grids of any shape, what a centre crop shows, and times that belong to their side."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import BatchFeature

import tiny
from foveate import FastV, ask, show
from foveate.methods import Method
from foveate.policy import Entry, Guard, Model, Policy


class Decoder:
    """A processor that only writes tokens down."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(int(token)) for token in ids)


def asked(family: str, method: Method | Policy) -> tuple[ask.Result, BatchFeature]:
    inputs = BatchFeature(dict(tiny.batch(*tiny.forms(family)["one"])))
    return ask.ask(tiny.model(family, "sdpa"), Decoder(), inputs, method, new_tokens=4, runs=1), inputs


def test_the_grid_of_a_wide_picture_comes_from_the_processor():
    result, inputs = asked("qwen", FastV(keep=5))
    grid = ask.grid(tiny.model("qwen", "sdpa"), inputs, result.visual)
    assert grid == (4, 6)
    sheet = show.draw(Image.new("RGB", (60, 40), "white"), grid, result, FastV(keep=5), "?")
    assert sheet.width > 2 * sheet.height  # two panels, each wider than high


def test_every_figure_is_there_on_a_model_without_a_square_grid():
    result, _ = asked("qwen", FastV(keep=5))
    assert [(layer, kept.sum(), len(kept)) for layer, kept in result.stages] == [(2, 5, 24)]
    assert result.dense.flops and result.pruned.flops and result.pruned.flops < result.dense.flops
    assert result.pruned.cache_bytes < result.dense.cache_bytes
    assert len(result.dense.answer.split()) == len(result.pruned.answer.split()) == 4


@pytest.mark.parametrize(("threshold", "again"), [(1e6, True), (-1e6, False)])
def test_the_guard_of_a_policy_is_in_force(threshold, again):
    guard = Guard("margin", threshold, alpha=0.05, confidence=0.95, samples=100, rerun=0.5)
    policy = Policy(Model.of(tiny.model("qwen", "sdpa")), {"default": Entry(FastV(keep=0), guard=guard)})
    result, _ = asked("qwen", policy)
    plain, _ = asked("qwen", FastV(keep=0))
    assert result.again is again and plain.again is None
    assert plain.dense.answer != plain.pruned.answer
    assert result.pruned.answer == (plain.dense if again else plain.pruned).answer
    assert (result.pruned.flops > result.dense.flops) is again


def test_several_pictures_form_no_one_grid():
    model, inputs = tiny.model("qwen", "sdpa"), tiny.batch(tiny.forms("qwen")["ragged"][0])
    with pytest.raises(NotImplementedError, match="2"):
        ask.grid(model, inputs, int((inputs["input_ids"] == tiny.IMAGE).sum()))


def test_a_centre_crop_shows_the_middle():
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 20:60] = 255
    cropping = SimpleNamespace(do_center_crop=True, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shown = ask.shown(SimpleNamespace(image_processor=cropping), Image.fromarray(pixels))
    assert shown.size == (40, 40) and np.asarray(shown).min() == 255
    whole = SimpleNamespace(image_processor=SimpleNamespace(do_center_crop=False))
    assert ask.shown(whole, Image.fromarray(pixels)).size == (80, 40)


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (30, 20)).save(tmp_path / "side.jpg", exif=exif)
    assert ask.read_picture(tmp_path / "side.jpg").size == (20, 30)
