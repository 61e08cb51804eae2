"""Tiny random LLaVA and Qwen2.5-VL models, and prompts for them: one row at a time, and batches of rows.

A prompt is a `Row`: token ids with one placeholder per visual token, and the sizes of its images (their pixels follow
from their seeds). `FORMS` are batches of rows: alone, equal lengths, left padding, ragged numbers and sizes of images,
text only.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

LAYERS, WIDTH, HEADS, VOCABULARY = 8, 64, 4, 128
PAD, IMAGE, VIDEO, VISION_START, VISION_END = 0, 100, 101, 102, 103
LLAVA_SIDE = 5  # 25 visual tokens: an odd number, so that halves have to be rounded

FAMILIES = ("llava-mha", "llava-gqa", "qwen")


@dataclass(frozen=True)
class Row:
    """One prompt without padding. `images` are (seed, height, width), in visual tokens."""

    family: str
    ids: tuple[int, ...]
    images: tuple[tuple[int, int, int], ...]

    @property
    def visual(self) -> list[int]:
        return [i for i, token in enumerate(self.ids) if token == IMAGE]


def row(family: str, *sizes: tuple[int, int], text: int, seed: int, system: tuple[int, ...] = (1, 5, 6)) -> Row:
    """The `system` tokens, images of the given (height, width) with a word after each, and `text` more tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(system)
    for height, width in sizes:
        image = [IMAGE] * (height * width)
        ids += [VISION_START, *image, VISION_END] if family == "qwen" else [*image, 7]
    ids += torch.randint(8, 90, (text,), generator=generator).tolist()
    return Row(family, tuple(ids), tuple((100 * seed + k, h, w) for k, (h, w) in enumerate(sizes)))


def pixels(family: str, image: tuple[int, int, int]) -> Tensor:
    """What the processor would hand over: (1, 3, 70, 70), or (patches, 1176) with 4 patches to a token for Qwen."""
    seed, height, width = image
    generator = torch.Generator().manual_seed(seed)
    if family == "qwen":
        return torch.randn(4 * height * width, 3 * 2 * 14 * 14, generator=generator)
    return torch.randn(1, 3, 14 * height, 14 * width, generator=generator)


def batch(*rows: Row, spare: int = 0) -> dict[str, Tensor]:
    """Left-padded model inputs of a few rows, `spare` columns wider than they need to be."""
    family, width = rows[0].family, max(len(r.ids) for r in rows) + spare
    ids = torch.tensor([[PAD] * (width - len(r.ids)) + list(r.ids) for r in rows])
    real = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in rows])
    inputs = {"input_ids": ids, "attention_mask": real}
    images = [image for r in rows for image in r.images]
    if images:
        inputs["pixel_values"] = torch.cat([pixels(family, image) for image in images])
    if family == "qwen":
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        if images:
            inputs["image_grid_thw"] = torch.tensor([(1, 2 * h, 2 * w) for _, h, w in images])
    return inputs


def forms(family: str) -> dict[str, tuple[Row, ...]]:
    """The batches of the contract matrix, by name."""
    side = (LLAVA_SIDE, LLAVA_SIDE)
    big, small, wide = ((4, 6), (2, 4), (3, 7)) if family == "qwen" else (side, side, side)
    one = row(family, big, text=7, seed=1)
    return {
        "one": (one,),
        "equal": (one, row(family, big, text=7, seed=2)),
        "left padding": (row(family, big, text=4, seed=3), row(family, big, text=9, seed=4)),
        "ragged": (
            row(family, small, wide, text=4, seed=12),
            row(family, big, text=9, seed=6),
            row(family, text=5, seed=7),
        ),
        "text only": (row(family, text=6, seed=8), row(family, text=9, seed=9)),
    }


FORMS = tuple(forms("qwen"))


@cache
def model(family: str, attention: str) -> Any:
    """The family's model; the same weights under every attention implementation."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if family == "llava-mha" else HEADS // 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "qwen":
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        vision = {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
            "window_size": 56,
            "in_channels": 3,
        }
        config = Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )
        net = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    else:
        tower = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=14 * LLAVA_SIDE,
            patch_size=14,
        )
        config = LlavaConfig(
            vision_config=tower,
            text_config=LlamaConfig(**text),
            image_token_id=IMAGE,
            image_seq_length=LLAVA_SIDE**2,
            vision_feature_layer=-1,
        )
        net = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    randomise(net)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = PAD
    return net.eval()


@torch.no_grad()
def randomise(net: torch.nn.Module) -> None:
    """Weights under which tokens matter: signals keep their size, and attention is sharp rather than nearly uniform."""
    generator = torch.Generator().manual_seed(11)
    for name, p in net.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.1 * noise)
        elif "embed_tokens" in name:
            p.copy_(noise)
        else:
            sharper = 1.7 if "q_proj" in name or "k_proj" in name else 1.0
            p.copy_(sharper * noise / p[0].numel() ** 0.5)
        if name == "lm_head.weight":
            p[[IMAGE, VIDEO]] = 0  # nobody says a placeholder


def text_model(attention: str) -> LlamaForCausalLM:
    """A bare language model, new at every call."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        pad_token_id=PAD,
    )
    net = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    randomise(net)
    return net.eval()
