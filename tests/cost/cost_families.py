"""Tiny random models of every family that `foveate.cost` reads, each with the inputs of one prompt about one image.

The language models and towers are wide enough that what `cost` leaves out (norms, rotary tables) stays far below 1 %.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

IMAGE, START, END = 100, 102, 103
TEXT = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=14)
QWEN_TOWER = dict(
    depth=3, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
    out_hidden_size=64, in_channels=3,
)  # fmt: skip
QWEN_IDS = dict(image_token_id=IMAGE, video_token_id=101, vision_start_token_id=START, vision_end_token_id=END)
MROPE = dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)


def clip(size=56):
    return T.CLIPVisionConfig(**TOWER, image_size=size, projection_dim=32).to_dict()


def siglip(size=56, head=False):
    return T.SiglipVisionConfig(**TOWER, image_size=size, vision_use_head=head).to_dict()


def llava(**options):
    options = dict(vision_config=clip(), image_seq_length=16) | options
    return T.LlavaConfig(text_config=T.LlamaConfig(**TEXT).to_dict(), image_token_id=IMAGE, **options)


def llava_siglip():
    return llava(vision_config=siglip(head=True), vision_feature_select_strategy="full", vision_feature_layer=-1)


def llava_pixtral():
    pixtral = T.PixtralVisionConfig(**TOWER, image_size=112).to_dict()
    return llava(vision_config=pixtral, vision_feature_select_strategy="full", vision_feature_layer=-1)


def llava_next():
    return T.LlavaNextConfig(
        text_config=T.LlamaConfig(**TEXT).to_dict(), vision_config=clip(), image_token_id=IMAGE, vision_feature_layer=-2,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )  # fmt: skip


def onevision(aspect="anyres_max_9"):
    return T.LlavaOnevisionConfig(
        text_config=T.Qwen2Config(**TEXT).to_dict(), vision_config=siglip(), image_token_id=IMAGE, vision_feature_layer=-1,
        image_grid_pinpoints=[[56, 56], [56, 112], [112, 56], [112, 112]], vision_aspect_ratio=aspect,
    )  # fmt: skip


def qwen2_vl():
    tower = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=4, mlp_ratio=2, patch_size=14, in_channels=3)
    return T.Qwen2VLConfig(text_config=TEXT | dict(rope_parameters=MROPE), vision_config=tower, **QWEN_IDS)


def qwen2_5_vl():
    tower = QWEN_TOWER | dict(fullatt_block_indexes=[1], window_size=56)
    return T.Qwen2_5_VLConfig(text_config=TEXT | dict(rope_parameters=MROPE), vision_config=tower, **QWEN_IDS)


def qwen3_vl(config=T.Qwen3VLConfig, **text):
    tower = QWEN_TOWER | dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    text = TEXT | dict(head_dim=32, rope_parameters=MROPE | dict(mrope_interleaved=True)) | text
    return config(text_config=text, vision_config=tower, **QWEN_IDS)


def qwen3_vl_moe():
    return qwen3_vl(
        T.Qwen3VLMoeConfig, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=48, mlp_only_layers=[1]
    )


def mistral3():
    pixtral = T.PixtralVisionConfig(**TOWER, image_size=112).to_dict()
    text = T.MistralConfig(**TEXT, head_dim=32).to_dict()
    return T.Mistral3Config(text_config=text, vision_config=pixtral, image_token_id=IMAGE, vision_feature_layer=-1)


def internvl():
    tower = TOWER | dict(image_size=[112, 112], patch_size=[14, 14])
    return T.InternVLConfig(
        text_config=T.Qwen2Config(**TEXT).to_dict(), vision_config=tower, image_token_id=IMAGE, image_seq_length=16,
    )  # fmt: skip


def smolvlm(config=T.SmolVLMConfig):
    text = T.LlamaConfig(**TEXT).to_dict()
    return config(text_config=text, vision_config=TOWER | dict(image_size=112), image_token_id=IMAGE, scale_factor=2)


def idefics3():
    return smolvlm(T.Idefics3Config)


def gemma3(window=16):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = TEXT | dict(head_dim=32, sliding_window=window, layer_types=kinds, query_pre_attn_scalar=16)
    return T.Gemma3Config(
        text_config=text, vision_config=siglip(112), image_token_id=IMAGE, mm_tokens_per_image=16, boi_token_index=START,
        eoi_token_index=END,
    )  # fmt: skip


def paligemma():
    tower = siglip() | dict(projection_dim=64)
    text = T.GemmaConfig(**TEXT, head_dim=32).to_dict()
    return T.PaliGemmaConfig(text_config=text, vision_config=tower, image_token_id=IMAGE, projection_dim=64)


# family: (config, shape of pixel_values, further inputs)
FAMILIES: dict[str, tuple[Callable[[], Any], tuple[int, ...], dict[str, Any]]] = {
    "llava": (llava, (1, 3, 56, 56), {}),
    "llava-siglip": (llava_siglip, (1, 3, 56, 56), {}),
    "llava-pixtral": (llava_pixtral, (1, 3, 84, 56), {"image_sizes": [[84, 56]]}),
    "llava-next": (llava_next, (1, 5, 3, 56, 56), {"image_sizes": [[90, 112]]}),
    "llava-onevision": (onevision, (1, 3, 3, 56, 56), {"image_sizes": [[56, 112]]}),
    "qwen2-vl": (qwen2_vl, (64, 1176), {"image_grid_thw": [[1, 4, 16]]}),
    "qwen2.5-vl": (qwen2_5_vl, (120, 1176), {"image_grid_thw": [[1, 6, 20]]}),
    "qwen3-vl": (qwen3_vl, (64, 1176), {"image_grid_thw": [[1, 8, 8]]}),
    "qwen3-vl-moe": (qwen3_vl_moe, (64, 1176), {"image_grid_thw": [[1, 8, 8]]}),
    "mistral3": (mistral3, (1, 3, 112, 56), {"image_sizes": [[112, 56]]}),
    "internvl": (internvl, (1, 3, 112, 112), {}),
    "smolvlm": (smolvlm, (1, 1, 3, 112, 112), {}),
    "idefics3": (idefics3, (1, 1, 3, 112, 112), {}),
    "gemma3": (gemma3, (1, 3, 112, 112), {}),
    "paligemma": (paligemma, (1, 3, 56, 56), {}),
}


def model_of(config: Any, attn: str) -> torch.nn.Module:
    torch.manual_seed(0)
    try:
        model = T.AutoModelForImageTextToText.from_config(config, attn_implementation=attn)
    except ValueError:  # a text config
        try:
            model = T.AutoModelForCausalLM.from_config(config, attn_implementation=attn)
        except ValueError:  # the text part of a Qwen-VL: no LM head
            model = T.AutoModel.from_config(config, attn_implementation=attn)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped kernels are not counted by FlopCounterMode
    return model.eval()


def prompt(visual: int, family: str, text: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """The inputs of a family: some text, `visual` image tokens, `text` more."""
    _, pixels, extra = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 90, (text,), generator=generator).tolist()
    ids = torch.tensor([[1, 5, START] + [IMAGE] * visual + [END] + words])
    inputs = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(*pixels, generator=generator)
    )
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs | {name: torch.tensor(value) for name, value in extra.items()}


def counted(run: Callable[[], Any]) -> int:
    """FLOPs that torch counts in `run`; its counter has no entry for the fused attention kernel of the CPU, so we add it."""

    def fused(q, k, v, *_, out_shape=None, **__):
        return sdpa_flop_count(q, k, v)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={kernel: fused}) as counter:
        run()
    return counter.get_total_flops()
