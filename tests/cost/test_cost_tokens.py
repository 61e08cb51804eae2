"""How many tokens: under a schedule, and of an image under a config."""

import numpy
import pytest
import torch
import transformers as T
from cost_families import FAMILIES, internvl, llava, llava_next, mistral3, model_of, onevision, smolvlm
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from typer.testing import CliRunner

from foveate import cost
from foveate.cli import app
from foveate.cost.images import patch_grids


def test_a_schedule_drops_visual_tokens_from_its_layers_on():
    assert cost.tokens_per_layer(6, 50, 40, [(2, 20), (4, 0)]) == [50, 50, 30, 30, 10, 10]
    assert cost.visual_per_layer(4, 40, []) == [40] * 4
    assert cost.tokens_per_layer(2, 50, 40, [(0, 10)]) == [20, 20]


def test_himaps_default_has_144_layer_averaged_tokens_on_llava():
    assert cost.layer_average(cost.visual_per_layer(32, 576, [(2, 288), (8, 72)])) == 144


@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 60))))
def test_a_schedule_is_either_refused_or_only_ever_drops(visual, text, schedule):
    try:
        counts = cost.tokens_per_layer(12, visual + text, visual, schedule)
    except ValueError:
        return
    assert counts == sorted(counts, reverse=True)
    assert text <= counts[-1] <= counts[0] <= visual + text


@pytest.mark.parametrize(
    "arguments",
    [(4, 10, 8, [(4, 2)]), (4, 10, 8, [(2, 9)]), (4, 10, 8, [(2, 4), (2, 3)]), (4, 10, 8, [(1, 4), (2, 5)]), (4, 5, 6)],
    ids=["layer out of range", "more than there are", "the same layer twice", "tokens come back", "more than prompt"],
)
def test_an_impossible_schedule_is_refused(arguments):
    with pytest.raises(ValueError):
        cost.tokens_per_layer(*arguments)


@pytest.mark.parametrize(
    ("config", "size", "tokens"),
    [
        (T.LlavaConfig(), None, 576),
        (T.LlavaConfig(), (480, 640), 576),
        (T.InternVLConfig(), None, 256),
        (T.Gemma3Config(vision_config=T.SiglipVisionConfig(image_size=896, patch_size=14)), None, 256),
        (T.PaliGemmaConfig(), None, 256),
        (T.Idefics3Config(vision_config={"image_size": 364, "patch_size": 14}), None, 169),
        (T.SmolVLMConfig(vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4), None, 64),
        (T.Qwen2VLConfig(), (1, 32, 46), 368),
        (T.Qwen2_5_VLConfig(), (448, 644), 368),
        (T.Qwen3VLConfig(), (448, 640), 280),
        (T.Qwen3VLConfig(), (3, 28, 40), 840),
        (T.LlavaNextConfig(), (672, 672), 576 + 48 * 48 + 48),
        (T.LlavaOnevisionConfig(), (384, 384), 729 + 27 * 27 + 27),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, T.PreTrainedConfig) else str(value),
)
def test_visual_tokens_of_one_image(config, size, tokens):
    assert cost.visual_tokens(config, size) == tokens


@pytest.mark.parametrize(
    "config", [llava_next(), onevision(), onevision("anyres_max_1")], ids=["next", "onevision", "max_1"]
)
def test_tiles_give_as_many_tokens_as_the_model_packs(config):
    model = model_of(config, "sdpa").model
    sizes = [(56, 56), (112, 112), (60, 200), (333, 80), (97, 113), (20, 31)]
    for size in sizes:
        tiles = len(patch_grids(cost.vision_shape(config), [size]))
        with torch.no_grad():
            packed = model.get_image_features(torch.zeros(1, tiles, 3, 56, 56), torch.tensor([size])).pooler_output
        assert cost.visual_tokens(config, size) == len(packed[0])


@given(st.integers(28, 400), st.integers(28, 400))
def test_pixtral_and_qwen_sizes_follow_their_processors(height, width):
    image = numpy.zeros((height, width, 3), numpy.uint8)
    rows, columns = (side // 28 for side in get_resize_output_image_size(image, 112, (28, 28)))
    assert cost.visual_tokens(mistral3(), (height, width)) == rows * columns

    rows, columns = (side // 28 for side in smart_resize(height, width, 28, 28 * 28, 10**9))
    assert cost.visual_tokens(T.Qwen2_5_VLConfig(), (height, width)) == rows * columns


def test_models_whose_processor_cuts_the_image_ask_for_the_number_of_tiles():
    for config in (internvl(), smolvlm()):
        assert cost.visual_tokens(config) == 16
        with pytest.raises(NotImplementedError, match="16 tokens for each"):
            cost.visual_tokens(config, (300, 300))


def test_a_missing_size_and_a_text_config_are_refused():
    with pytest.raises(ValueError, match="pixels"):
        cost.visual_tokens(T.Qwen2_5_VLConfig())
    with pytest.raises(ValueError, match="pixels"):
        cost.visual_tokens(llava_next())
    with pytest.raises(ValueError, match="composite"):
        cost.visual_tokens(llava().text_config)


def test_the_command_names_its_own_options_for_what_a_config_does_not_tell(tmp_path):
    FAMILIES["qwen2.5-vl"][0]().save_pretrained(tmp_path)
    told = CliRunner().invoke(app, ["cost", str(tmp_path), "--method", "uniform"])
    assert told.exit_code == 2 and "--image-size HEIGHTxWIDTH, or --visual" in told.stderr
    assert CliRunner().invoke(app, ["cost", str(tmp_path), "--method", "uniform", "--visual", "30"]).exit_code == 0


def test_images_are_read_off_the_inputs_of_a_forward():
    pixels = torch.ones(2, 3, 56, 56)
    ragged = torch.ones(2, 3, 3, 112, 112)
    ragged[1, 1:] = 0  # the second sample has one tile
    sizes, tiles = torch.tensor([[90, 112], [50, 50]]), torch.ones(2, 5, 3, 56, 56)

    assert cost.images_of(llava(), {"pixel_values": pixels}) == 2
    assert cost.images_of(llava(), {"input_ids": torch.ones(1, 4)}) == 0
    assert cost.images_of(llava().text_config, {"pixel_values": pixels}) == 0
    assert cost.images_of(smolvlm(), {"pixel_values": ragged}) == 4
    assert cost.images_of(llava_next(), {"pixel_values": tiles, "image_sizes": sizes}) == [(90, 112), (50, 50)]
    company = {"pixel_values": tiles, "image_sizes": sizes, "batch_num_images": torch.tensor([2])}
    assert cost.images_of(onevision(), company) == [(1, 4, 4), (1, 4, 4)]
    assert cost.images_of(mistral3(), {"pixel_values": tiles[:, 0], "image_sizes": sizes}) == [(1, 6, 8), (1, 3, 3)]
    qwen = FAMILIES["qwen2.5-vl"][0]()
    assert cost.images_of(qwen, {"image_grid_thw": torch.tensor([[1, 4, 8], [1, 6, 6]])}) == [[1, 4, 8], [1, 6, 6]]
    with pytest.raises(NotImplementedError, match="frames"):
        cost.images_of(onevision(), {"pixel_values_videos": tiles})
