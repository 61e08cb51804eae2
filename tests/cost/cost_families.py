"""Tiny random models of every family that `foveate.cost` reads, each with the inputs of one prompt about one image."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

IMAGE, START, END = 100, 102, 103
TEXT = {
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
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 101, "vision_start_token_id": START, "vision_end_token_id": END}
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


# family: (config, shape of pixel_values, further inputs)
FAMILIES: dict[str, tuple[Callable[[], Any], tuple[int, ...], dict[str, Any]]] = {
    "llava": (llava, (1, 3, 56, 56), {}),
    "llava-full": (llava_full, (1, 3, 56, 56), {}),
    "vipllava": (vipllava, (1, 3, 56, 56), {}),
    "llava-siglip": (llava_siglip, (1, 3, 56, 56), {}),
    "llava-pixtral": (llava_pixtral, (1, 3, 84, 56), {"image_sizes": [[84, 56]]}),
    "llava-next": (llava_next, (1, 5, 3, 56, 56), {"image_sizes": [[90, 112]]}),
    "llava-onevision": (onevision, (1, 3, 3, 56, 56), {"image_sizes": [[56, 112]]}),
    "qwen2-vl": (qwen2_vl, (64, 1176), {"image_grid_thw": [[1, 4, 16]]}),
    "qwen2.5-vl": (qwen2_5_vl, (120, 1176), {"image_grid_thw": [[1, 6, 20]]}),
    "qwen2.5-vl-frames": (qwen2_5_vl, (96, 1176), {"image_grid_thw": [[3, 4, 8]]}),
    "qwen3-vl": (qwen3_vl, (64, 1176), {"image_grid_thw": [[1, 8, 8]]}),
    "qwen3-vl-moe": (qwen3_vl_moe, (64, 1176), {"image_grid_thw": [[1, 8, 8]]}),
    "mistral3": (mistral3, (1, 3, 112, 56), {"image_sizes": [[112, 56]]}),
    "internvl": (internvl, (1, 3, 112, 112), {}),
    "smolvlm": (smolvlm, (1, 1, 3, 112, 112), {}),
    "idefics3": (idefics3, (1, 1, 3, 112, 112), {}),
    "gemma3": (gemma3, (1, 3, 112, 112), {}),
    "paligemma": (paligemma, (1, 3, 56, 56), {}),
}


def decoder_config(kind: str) -> Any:
    """A tiny config of the decoder of this model type, with whatever it can have that others lack."""
    options: dict[str, Any] = {}
    if kind.startswith(("gemma", "glm", "qwen3", "ministral")):
        options["head_dim"] = 32  # not hidden / heads
    if "vl" in kind:
        options["rope_parameters"] = MROPE
    if "moe" in kind:
        options |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "mlp_only_layers": [1]}
    if kind == "qwen2_moe":
        options["shared_expert_intermediate_size"] = 80
    if kind == "mixtral":
        options |= {"num_local_experts": 6, "num_experts_per_tok": 2}
    return T.CONFIG_MAPPING[kind](**TEXT | options)


def model_of(config: Any, attn: str) -> Any:
    """The model with LM head if there is one, random weights, on the CPU."""
    torch.manual_seed(0)
    for auto in (T.AutoModelForImageTextToText, T.AutoModelForCausalLM, T.AutoModel):
        if type(config) in auto._model_mapping:
            model = auto.from_config(config, attn_implementation=attn).eval()
            break
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch does not count grouped kernels
    return model


def prompt(visual: int, family: str, text: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """The inputs of a family: some text, `visual` image tokens, `text` more."""
    _, pixels, extra = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(5, 90, (text,), generator=generator).tolist()
    ids = torch.tensor([[1, 5, START] + [IMAGE] * visual + [END] + words])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(*pixels, generator=generator),
    }
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs | {name: torch.tensor(value) for name, value in extra.items()}


def counted(run: Callable[[], Any]) -> int:
    """FLOPs that torch counts in `run`; its counter knows no fused attention kernel of the CPU, so we tell it."""

    def fused(q, k, v, *_, out_shape=None, **__):
        return sdpa_flop_count(q, k, v)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={kernel: fused}) as counter:
        run()
    return counter.get_total_flops()
