"""A transformers config, read once into plain numbers: the only file of `cost` that knows attribute names and families.

`decoder_shape` and `vision_shape` turn a config into a frozen `DecoderShape` / `VisionShape`; the rest of this package
is arithmetic on those two. A model that is not listed here can still be costed: fill in the two dataclasses by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Decoders of (grouped-query) attention and a gated FFN: gate, up and down matrices. The tests run every one of these.
GATED = {
    "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "granite", "llama", "ministral", "mistral",
    "olmo", "olmo2", "phi3", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3", "qwen3_vl_text", "smollm3",
}  # fmt: skip
PLAIN = {"phi", "starcoder2"}  # the same with an FFN of two matrices
MIXTURES = {"mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text"}  # gated experts behind a router

GATED_TOWERS = {"pixtral", "qwen2_5_vl_vision"}
PLAIN_TOWERS = {
    "clip_vision_model", "idefics3_vision", "internvl_vision", "qwen2_vl_vision", "qwen3_vl_moe_vision",
    "qwen3_vl_vision", "siglip_vision_model", "smolvlm_vision",
}  # fmt: skip


@dataclass(frozen=True)
class DecoderShape:
    """A text decoder. The tuples have one entry per layer."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn_width: int  # columns of the FFN's matrices (of one expert in a mixture): what papers call m
    ffn: tuple[int, ...]  # multiply-adds of one token in each layer's FFN: its matrices, or router and active experts
    windows: tuple[int | None, ...]  # sliding window of each layer, None: it sees everything

    @property
    def layers(self) -> int:
        return len(self.ffn)


@dataclass(frozen=True)
class VisionShape:
    """A vision tower and its projector. Lengths are in patches a side unless said otherwise."""

    hidden: int
    ffn: int  # multiply-adds of one patch in one layer's FFN
    windows: tuple[int | None, ...]  # attention window of each layer, None: the whole frame
    patch: int  # pixels a side
    patch_inputs: int  # channels x frames x patch x patch, the inputs of one patch embedding
    class_token: bool  # the tower runs one more token than there are patches
    pooling_head: int  # FFN width of SigLIP's pooling head, which transformers computes though nobody reads it; 0: none
    merge: int  # patches a side that become one visual token
    projector: int  # multiply-adds of one visual token in the projector, deepstack mergers included
    projects_class_token: bool  # the class token becomes a visual token as well
    side: int | None  # the input's fixed height and width; None: whatever the image has
    longest_side: int | None = None  # pixels; larger images are shrunk to it before they are cut into patches
    tiles: tuple[tuple[int, int], ...] = ()  # LLaVA-NeXT's resolutions (height, width) in pixels; empty: no tiles
    max_tiles: int | None = None  # LLaVA-OneVision shrinks the features of more tiles than these
    splits: bool = False  # the processor, not the config, decides into how many tiles an image is cut


def decoder_shape(config: Any) -> DecoderShape:
    """The decoder of a composite (`LlavaConfig`) or a text config (`LlamaConfig`); a `DecoderShape` passes through.

    Raises NotImplementedError for a decoder whose layers are not attention plus FFN as counted here.
    """
    if isinstance(config, DecoderShape):
        return config
    text = config.get_text_config()
    kind = text.model_type
    if kind not in GATED | PLAIN | MIXTURES:
        raise NotImplementedError(
            f"No cost model for the decoder {kind!r}; pass a cost.DecoderShape that describes it."
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    slides = [k == "sliding_attention" for k in kinds] if kinds else [True] * text.num_hidden_layers
    return DecoderShape(
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=head_dim,
        vocab=text.vocab_size,
        ffn_width=getattr(text, "moe_intermediate_size", None) or text.intermediate_size,
        ffn=tuple(_ffn(text, layer) for layer in range(text.num_hidden_layers)),
        windows=tuple(window if slide else None for slide in slides),
    )


def _ffn(text: Any, layer: int) -> int:
    """Multiply-adds of one token in this layer's FFN."""
    d = text.hidden_size
    if text.model_type not in MIXTURES:
        return (2 if text.model_type in PLAIN else 3) * d * text.intermediate_size
    if text.model_type == "mixtral":
        return d * text.num_local_experts + text.num_experts_per_tok * 3 * d * text.intermediate_size
    if layer in (text.mlp_only_layers or []) or (layer + 1) % text.decoder_sparse_step:
        return 3 * d * text.intermediate_size
    shared = getattr(text, "shared_expert_intermediate_size", 0)
    return (
        d * text.num_experts  # router
        + text.num_experts_per_tok * 3 * d * text.moe_intermediate_size
        + (3 * d * shared + d if shared else 0)  # the shared expert and its gate
    )


def vision_shape(config: Any) -> VisionShape | None:
    """Tower and projector of a composite config; None for a text config. A `VisionShape` passes through.

    Raises NotImplementedError for an unknown tower or for a model that joins it to the text in an unknown way.
    """
    if isinstance(config, VisionShape):
        return config
    tower = getattr(config, "vision_config", None)
    if tower is None:
        return None
    kind = tower.model_type
    if kind not in GATED_TOWERS | PLAIN_TOWERS:
        raise NotImplementedError(f"No cost model for the tower {kind!r}; pass a cost.VisionShape that describes it.")
    native = "qwen" in kind or kind == "pixtral"  # runs at the image's own resolution
    d = tower.embed_dim if kind == "qwen2_vl_vision" else tower.hidden_size
    width = int(d * tower.mlp_ratio) if kind == "qwen2_vl_vision" else tower.intermediate_size
    patch = _side(tower.patch_size)
    side = None if native else _side(tower.image_size) // patch
    channels = tower.in_channels if "qwen" in kind else tower.num_channels
    merge, projector = _projector(config, d)
    class_token = kind in ("clip_vision_model", "internvl_vision")
    strategy = getattr(config, "vision_feature_select_strategy", None)
    aspect = getattr(config, "vision_aspect_ratio", "")
    return VisionShape(
        hidden=d,
        ffn=(3 if kind in GATED_TOWERS else 2) * d * width,
        windows=_tower_windows(tower, patch),
        patch=patch,
        patch_inputs=channels * _side(getattr(tower, "temporal_patch_size", 1)) * patch**2,
        class_token=class_token,
        pooling_head=width if getattr(tower, "vision_use_head", False) else 0,
        merge=merge,
        projector=projector,
        projects_class_token=class_token and strategy == "full",
        side=side,
        longest_side=_side(tower.image_size) if kind == "pixtral" else None,
        tiles=tuple((height, width) for height, width in getattr(config, "image_grid_pinpoints", None) or ()),
        max_tiles=int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None,
        splits=config.model_type in ("internvl", "idefics3", "smolvlm"),
    )


def _projector(config: Any, d: int) -> tuple[int, int]:
    """What joins a tower of width d to the text: (patches a side that make one visual token, multiply-adds for it)."""
    kind, tower, text = config.model_type, config.vision_config, config.get_text_config().hidden_size
    if kind in ("llava", "llava_next", "llava_onevision", "vipllava"):
        chosen = getattr(config, "vision_feature_layers", None) or config.vision_feature_layer
        inputs = d * (1 if isinstance(chosen, int) else len(chosen))
        return 1, inputs * text + text**2
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        merge = tower.spatial_merge_size
        inputs = d * merge**2
        out = tower.hidden_size if kind == "qwen2_vl" else tower.out_hidden_size
        mergers = 1 + len(getattr(tower, "deepstack_visual_indexes", ()))
        return merge, mergers * (inputs**2 + inputs * out)
    if kind == "mistral3":
        merge = config.spatial_merge_size
        layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
        return merge, (d * merge) ** 2 + d * layers * text + text**2
    if kind == "internvl":
        merge = round(1 / config.downsample_ratio)
        return merge, d * merge**2 * text + text**2
    if kind in ("idefics3", "smolvlm"):
        return config.scale_factor, d * config.scale_factor**2 * text
    if kind == "gemma3":
        side = _side(tower.image_size) // _side(tower.patch_size)
        return side // int(config.mm_tokens_per_image**0.5), d * text
    if kind == "paligemma":
        return 1, d * tower.projection_dim
    raise NotImplementedError(f"No cost model for the projector of {kind!r}; pass images=0 to leave the tower out.")


def _tower_windows(tower: Any, patch: int) -> tuple[int | None, ...]:
    """Attention window of each of a tower's layers in patches a side; only Qwen2.5-VL has any."""
    if tower.model_type != "qwen2_5_vl_vision":
        return (None,) * (tower.depth if "qwen" in tower.model_type else tower.num_hidden_layers)
    merge = tower.spatial_merge_size
    window = tower.window_size // merge // patch * merge
    return tuple(None if layer in tower.fullatt_block_indexes else window for layer in range(tower.depth))


def _side(size: Any) -> int:
    """A size given as 14 or (14, 14)."""
    if isinstance(size, int):
        return size
    if len(set(size)) > 1:
        raise NotImplementedError(f"No cost model for a size that is not square, {size}; pass a cost.VisionShape.")
    return size[0]
