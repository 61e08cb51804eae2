"""The families that `foveate.cost` reads, each with the inputs of one prompt about one image."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as T
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tiny_families import (
    END,
    IMAGE,
    MROPE,
    START,
    TEXT,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_full,
    llava_next,
    llava_pixtral,
    llava_siglip,
    mistral3,
    onevision,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    qwen3_vl_moe,
    smolvlm,
    vipllava,
)

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
