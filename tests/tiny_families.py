"""Tiny random models of every family of vision-language model, and prompts about pictures and videos for them.

A new family is a function that returns its config, an entry in `FAMILIES`, and, if its processor writes down pictures
in a way of its own, a function that does the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as T
from torch import Tensor

import foveate
from tiny import randomise

PAD, IMAGE, VIDEO, START, END = 0, 100, 101, 102, 103
TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
QWEN_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
    "in_channels": 3,
}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def clip(size=56):
    return T.CLIPVisionConfig(**TOWER, image_size=size, projection_dim=32).to_dict()


def siglip(size=56, head=False):
    return T.SiglipVisionConfig(**TOWER, image_size=size, vision_use_head=head).to_dict()


def llava(**options):
    options = {"vision_config": clip(), "image_seq_length": 16} | options
    return T.LlavaConfig(text_config=T.LlamaConfig(**TEXT).to_dict(), image_token_id=IMAGE, **options)


def llava_full():
    """The class token and two layers' features go through the projector as well."""
    return llava(vision_feature_select_strategy="full", vision_feature_layer=[-2, -1], image_seq_length=17)


def vipllava():
    return T.VipLlavaConfig(
        text_config=T.LlamaConfig(**TEXT).to_dict(),
        vision_config=clip(),
        image_token_id=IMAGE,
        vision_feature_layers=[-2, -1],
    )


def llava_siglip():
    return llava(vision_config=siglip(head=True), vision_feature_select_strategy="full", vision_feature_layer=-1)


def llava_pixtral():
    pixtral = T.PixtralVisionConfig(**TOWER, image_size=112).to_dict()
    return llava(vision_config=pixtral, vision_feature_select_strategy="full", vision_feature_layer=-1)


def llava_next():
    return T.LlavaNextConfig(
        text_config=T.LlamaConfig(**TEXT).to_dict(),
        vision_config=clip(),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )


def onevision(aspect="anyres_max_9"):
    return T.LlavaOnevisionConfig(
        text_config=T.Qwen2Config(**TEXT).to_dict(),
        vision_config=siglip(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[56, 56], [56, 112], [112, 56], [112, 112]],
        vision_aspect_ratio=aspect,
    )


def qwen2_vl():
    tower = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 14,
        "in_channels": 3,
    }
    return T.Qwen2VLConfig(text_config=TEXT | {"rope_parameters": MROPE}, vision_config=tower, **QWEN_IDS)


def qwen2_5_vl():
    tower = QWEN_TOWER | {"fullatt_block_indexes": [1], "window_size": 56}
    return T.Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": MROPE}, vision_config=tower, **QWEN_IDS)


def qwen3_vl(config=T.Qwen3VLConfig, **text):
    tower = QWEN_TOWER | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = TEXT | {"head_dim": 32, "rope_parameters": MROPE | {"mrope_interleaved": True}} | text
    return config(text_config=text, vision_config=tower, **QWEN_IDS)


def qwen3_vl_moe():
    return qwen3_vl(
        T.Qwen3VLMoeConfig, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[1]
    )


def mistral3():
    pixtral = T.PixtralVisionConfig(**TOWER, image_size=112).to_dict()
    text = T.MistralConfig(**TEXT, head_dim=32).to_dict()
    return T.Mistral3Config(text_config=text, vision_config=pixtral, image_token_id=IMAGE, vision_feature_layer=-1)


def ministral3():
    """Queries are scaled by position: here from the tenth token on, in steps."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5}
    text = T.Ministral3Config(
        **TEXT, head_dim=32, rope_parameters=rope | {"original_max_position_embeddings": 10}
    ).to_dict()
    pixtral = T.PixtralVisionConfig(**TOWER, image_size=112).to_dict()
    return T.Mistral3Config(text_config=text, vision_config=pixtral, image_token_id=IMAGE, vision_feature_layer=-1)


def internvl():
    tower = TOWER | {"image_size": [112, 112], "patch_size": [14, 14]}
    return T.InternVLConfig(
        text_config=T.Qwen2Config(**TEXT).to_dict(),
        vision_config=tower,
        image_token_id=IMAGE,
        image_seq_length=16,
    )


def smolvlm(config=T.SmolVLMConfig):
    text = T.LlamaConfig(**TEXT).to_dict()
    return config(text_config=text, vision_config=TOWER | {"image_size": 112}, image_token_id=IMAGE, scale_factor=2)


def idefics3():
    return smolvlm(T.Idefics3Config)


def gemma3(window=16):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = TEXT | {"head_dim": 32, "sliding_window": window, "layer_types": kinds, "query_pre_attn_scalar": 16}
    return T.Gemma3Config(
        text_config=text,
        vision_config=siglip(112),
        image_token_id=IMAGE,
        mm_tokens_per_image=16,
        boi_token_index=START,
        eoi_token_index=END,
    )


def paligemma():
    tower = siglip() | {"projection_dim": 64}
    text = T.GemmaConfig(**TEXT, head_dim=32).to_dict()
    return T.PaliGemmaConfig(text_config=text, vision_config=tower, image_token_id=IMAGE, projection_dim=64)


def video_llava():
    return T.VideoLlavaConfig(
        text_config=T.LlamaConfig(**TEXT).to_dict(),
        vision_config=clip(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=16,
        video_seq_length=34,
    )


def glm4v():
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 14,
        "image_size": 112,
        "out_hidden_size": 64,
    }
    text = TEXT | {"rope_parameters": MROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}
    return T.Glm4vConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=104,
        video_end_token_id=105,
    )


def mllama():
    """Reads its images by cross-attention: nothing of them is in the prompt."""
    text = {key: TEXT[key] for key in TEXT if key != "max_position_embeddings"} | {"cross_attention_layers": [1]}
    vision = {
        "hidden_size": 32,
        "attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "vision_output_dim": 64,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
        "intermediate_layers_indices": [0],
    }
    return T.MllamaConfig(vision_config=vision, text_config=text)


def mini():
    """The embedded model's architecture; its weights here are random ones."""
    config = T.AutoConfig.from_pretrained(foveate.mini_path())
    config.image_token_id = IMAGE
    return config


# ---- pictures and videos


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture or a video, as a processor hands it over.

    Attributes:
        inputs: its tensors.
        runs: how many placeholders stand in a row, for every run of them; None: one run, as long as the model says.
        token: the placeholder.
        kind: what it is in `mm_token_type_ids`, 1 for a picture and 2 for a video.
    """

    inputs: dict[str, Tensor]
    runs: tuple[int, ...] | None = None
    token: int = IMAGE
    kind: int = 1


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square(side: int, tokens: int, tiles: int = 1) -> Callable[[int], Picture]:
    """`tiles` square pictures of `tokens` placeholders each, with a word between them."""
    return lambda seed: Picture({"pixel_values": noise(seed, tiles, 3, side, side)}, (tokens,) * tiles)


def crops(height: int, width: int, count: int) -> Callable[[int], Picture]:
    """LLaVA-NeXT and OneVision: the whole picture and `count` crops of it."""
    sizes = torch.tensor([[height, width]])
    return lambda seed: Picture({"pixel_values": noise(seed, 1, 1 + count, 3, 56, 56), "image_sizes": sizes})


def pixtral(height: int, width: int, *rows: int) -> Callable[[int], Picture]:
    """A picture of any size, a break after each of its `rows` of tokens; the smaller ones of a batch are padded."""
    sizes = torch.tensor([[height, width]])
    return lambda seed: Picture({"pixel_values": noise(seed, 1, 3, height, width), "image_sizes": sizes}, rows)


def tiled(count: int) -> Callable[[int], Picture]:
    """Idefics3 and SmolVLM: `count` tiles, which belong to their row of the batch."""
    return lambda seed: Picture({"pixel_values": noise(seed, 1, count, 3, 112, 112)}, (16,) * count)


def grid(height: int, width: int) -> Callable[[int], Picture]:
    """Qwen-VL and GLM-V: a picture of height x width visual tokens, four patches each."""

    def picture(seed: int) -> Picture:
        thw = torch.tensor([[1, 2 * height, 2 * width]])
        return Picture(
            {"pixel_values": noise(seed, 4 * height * width, 1176), "image_grid_thw": thw}, (height * width,)
        )

    return picture


def film(frames: int, height: int, width: int, apart: bool = False, token: int = VIDEO) -> Callable[[int], Picture]:
    """The same families' videos: `frames` times height x width tokens, in newer ones with words between the frames."""

    def video(seed: int) -> Picture:
        thw, size = torch.tensor([[frames, 2 * height, 2 * width]]), height * width
        inputs = {"pixel_values_videos": noise(seed, 4 * frames * size, 1176), "video_grid_thw": thw}
        return Picture(inputs, (size,) * frames if apart else (frames * size,), token, kind=2)

    return video


def clip_of(frames: int, tokens: int | None) -> Callable[[int], Picture]:
    """LLaVA-OneVision's and Video-LLaVA's videos."""
    runs = None if tokens is None else (tokens,)
    return lambda seed: Picture({"pixel_values_videos": noise(seed, 1, frames, 3, 56, 56)}, runs, VIDEO, kind=2)


# ---- families


@dataclass(frozen=True)
class Family:
    """A family: its config and what can be in its prompts.

    Attributes:
        image: a picture. wide: a bigger one, if there are others than squares of one size.
        video: a video, if the family has them.
    """

    config: Callable[[], Any]
    image: Callable[[int], Picture]
    wide: Callable[[int], Picture] | None = None
    video: Callable[[int], Picture] | None = None


FAMILIES = {
    "llava": Family(llava, square(56, 16)),
    "llava-next": Family(llava_next, crops(56, 112, 2), wide=crops(90, 112, 4)),
    "llava-onevision": Family(onevision, crops(56, 112, 2), wide=crops(112, 112, 4), video=clip_of(2, None)),
    "video-llava": Family(video_llava, square(56, 16), video=clip_of(2, 34)),
    "qwen2-vl": Family(qwen2_vl, grid(2, 4), wide=grid(4, 5), video=film(2, 2, 4)),
    "qwen2.5-vl": Family(qwen2_5_vl, grid(2, 4), wide=grid(4, 5), video=film(2, 2, 4)),
    "qwen3-vl": Family(qwen3_vl, grid(2, 4), wide=grid(4, 5), video=film(2, 2, 4, apart=True)),
    "internvl": Family(internvl, square(112, 16), wide=square(112, 16, tiles=3), video=square(112, 16, tiles=2)),
    "smolvlm": Family(smolvlm, tiled(1), wide=tiled(3), video=tiled(2)),
    "idefics3": Family(idefics3, tiled(1), wide=tiled(3)),
    "gemma3": Family(lambda: gemma3(window=512), square(112, 16), wide=square(112, 16, tiles=2)),
    "paligemma": Family(paligemma, square(56, 16)),
    "mistral3": Family(mistral3, pixtral(56, 112, 4, 4), wide=pixtral(112, 84, 3, 3, 3, 3)),
    "glm4v": Family(glm4v, grid(2, 4), wide=grid(4, 5), video=film(2, 2, 4, apart=True, token=IMAGE)),
    "mini": Family(mini, square(144, 144)),
    # the same classes with other parts
    "llava-full": Family(llava_full, square(56, 17)),
    "llava-siglip": Family(llava_siglip, square(56, 16)),
    "llava-pixtral": Family(llava_pixtral, pixtral(28, 112, 8, 8), wide=pixtral(84, 56, 4, 4, 4, 4, 4, 4)),
    "vipllava": Family(vipllava, square(56, 16)),
    "ministral3": Family(ministral3, pixtral(56, 112, 4, 4), wide=pixtral(112, 84, 3, 3, 3, 3)),
    "qwen3-vl-moe": Family(qwen3_vl_moe, grid(2, 4), wide=grid(4, 5), video=film(2, 2, 4, apart=True)),
}
LAYERS = 5
OLD_NAMES = "pixel_values" not in inspect.signature(T.VideoLlavaForConditionalGeneration.forward).parameters


def deeper(config: Any) -> Any:
    """The config with `LAYERS` decoder layers, whose kinds go on as they began."""
    text = config.get_text_config()
    text.num_hidden_layers = LAYERS
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = (text.layer_types * LAYERS)[:LAYERS]
    return config


def build(family: str, attention: str) -> Any:
    """A new model of the family; the same weights each time and under every attention implementation."""
    config = deeper(FAMILIES[family].config())
    torch.manual_seed(0)
    net = T.AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    if hasattr(net, "set_experts_implementation"):
        net.set_experts_implementation("eager")
    randomise(net)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = PAD
    return net


@cache
def model(family: str, attention: str) -> Any:
    return build(family, attention)


# ---- prompts


@dataclass(frozen=True)
class Row:
    """One prompt: pictures by the name of their form in `Family`, with a word after each, and then words."""

    pictures: tuple[str, ...] = ("image",)
    words: int = 7
    seed: int = 0


@cache
@torch.no_grad()
def pictures(family: str, row: Row) -> list[Picture]:
    return [getattr(FAMILIES[family], form)(1000 * row.seed + n) for n, form in enumerate(row.pictures)]


@cache
@torch.no_grad()
def features(family: str, form: str) -> int:
    """How many visual tokens the model makes of a picture, where only the model knows."""
    net, picture = model(family, "sdpa"), getattr(FAMILIES[family], form)(0)
    made = (net.get_image_features if picture.kind == 1 else net.get_video_features)(**picture.inputs)
    made = getattr(made, "pooler_output", made)
    return sum(feature.numel() // feature.shape[-1] for feature in made)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a row and what each is: 0 text, 1 picture, 2 video."""

    ids: list[int]
    kinds: list[int]

    @property
    def visual(self) -> list[int]:
        return [i for i, kind in enumerate(self.kinds) if kind]


@cache
def tokens(family: str, row: Row) -> Tokens:
    words = torch.randint(8, 90, (row.words,), generator=torch.Generator().manual_seed(row.seed)).tolist()
    ids, kinds = [] if family == "paligemma" else [1, 5], [] if family == "paligemma" else [0, 0]
    for form, picture in zip(row.pictures, pictures(family, row), strict=True):
        for run in (features(family, form),) if picture.runs is None else picture.runs:
            ids += [START, *[picture.token] * run, END]
            kinds += [0, *[picture.kind] * run, 0]
    return Tokens(ids + words, kinds + [0] * row.words)


def batch(family: str, *rows: Row) -> dict[str, Tensor]:
    """Left-padded model inputs of a few rows."""
    parts = [tokens(family, row) for row in rows]
    width = max(len(part.ids) for part in parts)
    ids = torch.tensor([[PAD] * (width - len(part.ids)) + part.ids for part in parts])
    kinds = torch.tensor([[0] * (width - len(part.ids)) + part.kinds for part in parts])
    real = torch.tensor([[0] * (width - len(part.ids)) + [1] * len(part.ids) for part in parts])
    inputs = {"input_ids": ids, "attention_mask": real}
    if family.startswith(("qwen", "glm")):
        inputs["mm_token_type_ids"] = kinds
    if family == "gemma3":
        inputs["token_type_ids"] = kinds
    if family == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)  # all of it is prefix
    per_row = [[picture.inputs for picture in pictures(family, row)] for row in rows]
    if family in ("smolvlm", "idefics3"):  # (rows, tiles, ...), empty tiles where a row has fewer
        if any(per_row):
            tiles = [torch.cat([p["pixel_values"] for p in row], 1) if row else None for row in per_row]
            most = max(t.shape[1] for t in tiles if t is not None)
            padded = [noise(0, 1, 0, 3, 112, 112) if t is None else t for t in tiles]
            inputs["pixel_values"] = torch.cat(
                [torch.nn.functional.pad(t, (0, 0) * 3 + (0, most - t.shape[1])) for t in padded]
            )
        return inputs
    flat = [picture for row in per_row for picture in row]
    for name in dict.fromkeys(name for picture in flat for name in picture):
        values = [picture[name] for picture in flat if name in picture]
        largest = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
        if name != "image_sizes" and values[0].ndim > 2:  # crops and pictures of different sizes are padded
            values = [
                torch.nn.functional.pad(
                    v, [e for size, most in list(zip(v.shape, largest, strict=True))[:0:-1] for e in (0, most - size)]
                )
                for v in values
            ]
        inputs[name] = torch.cat(values)
    if family == "video-llava" and OLD_NAMES and "pixel_values" in inputs:
        inputs["pixel_values_images"] = inputs.pop("pixel_values")
    return inputs
