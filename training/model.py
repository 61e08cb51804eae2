"""What mini is, and its training forward: many questions about one picture in one pass.

The checkpoint is an ordinary `LlavaForConditionalGeneration`; this file computes the same function from the same
parameters, arranged so that the system text and the picture are computed once and every question sees only them and
itself (positions restart after the picture). `tests/mini/test_training.py` checks that both give the same logits.
It does not know about data, losses or optimisers.
"""

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

IMAGE_SIZE, PATCH = 144, 12
GRID = IMAGE_SIZE // PATCH  # 12 x 12 patches = 144 visual tokens


def build(vocabulary: int, image_token: int, *, tower=(6, 192), decoder=(12, 192, 512), heads=3, seed=0):
    """A freshly initialised mini; `tower` is (layers, width), `decoder` is (layers, width, feed-forward width)."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        num_hidden_layers=tower[0],
        hidden_size=tower[1],
        intermediate_size=4 * tower[1],
        num_attention_heads=max(1, tower[1] // 64),
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=decoder[0],
        hidden_size=decoder[1],
        intermediate_size=decoder[2],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        initializer_range=decoder[1] ** -0.5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):  # branches start small, as in GPT-2
                linear.weight.mul_((2 * decoder[0]) ** -0.5)
            # All heads but one start with equal query and key, so that a token looks at tokens of like content: a word
            # of the question at the patches that mean it (mimetic initialisation, Trockman and Kolter, ICML 2023).
            alike = decoder[1] // heads * (heads - 1)
            layer.self_attn.k_proj.weight[:alike] = layer.self_attn.q_proj.weight[:alike]
        projector = model.model.multi_modal_projector
        for linear in (projector.linear_1, projector.linear_2):
            torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            torch.nn.init.zeros_(linear.bias)
    return model


def softmax_attention(q, k, v, mask=None):
    """Plain attention in the dtype of its inputs; q, k, v: (..., n, d)."""
    score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        score = score + mask
    return torch.softmax(score, dim=-1) @ v


def see(model, pixels):
    """pixels (B, 3, 144, 144) -> projected patches (B, 144, D), as LLaVA puts them into the decoder."""
    tower, config = model.model.vision_tower, model.config.vision_config
    batch, heads = pixels.shape[0], config.num_attention_heads
    kernel = tower.embeddings.patch_embedding
    patches = pixels.view(batch, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(batch, GRID * GRID, -1)
    x = F.linear(patches, kernel.weight.flatten(1), kernel.bias) + tower.embeddings.position_embedding.weight
    for layer in tower.encoder.layers:
        attention, norm = layer.self_attn, layer.layer_norm1
        h = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        bias = torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias])
        qkv = F.linear(h, weight, bias).view(batch, GRID * GRID, 3, heads, -1).permute(2, 0, 3, 1, 4)
        h = softmax_attention(*qkv.unbind(0)).transpose(1, 2).reshape(x.shape)  # (B, 144, width)
        x = x + attention.out_proj(h)
        norm = layer.layer_norm2
        h = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(h), approximate="tanh"))
    return model.model.multi_modal_projector(x)


def rms_norm(x, weight, eps):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rope_tables(config, positions):
    """cos and sin (n, head size) of Llama's rotary embedding at the given positions."""
    size = config.hidden_size // config.num_attention_heads
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2, device=positions.device) / size)
    angle = (positions[:, None] * frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def read(model, system, patches, questions):
    """Hidden states of the questions' tokens after the final norm: a list of (B, count, length, D).

    system: ids (s,) of the text before the picture; patches: (B, 144, D); questions: a list of ids (B, count, length):
    `count` questions of up to `length` tokens, padded on the right. Prefix and questions travel as separate tensors,
    since slicing one long sequence in every layer costs more than the attention itself.
    """
    llama, config = model.model.language_model, model.config.text_config
    batch, heads = patches.shape[0], config.num_attention_heads
    words = llama.embed_tokens.weight
    prefix = torch.cat([F.embedding(system, words).expand(batch, -1, -1), patches], dim=1)
    after = prefix.shape[1]
    streams = [prefix[:, None]] + [F.embedding(ids, words) for ids in questions]  # each (B, count, length, D)
    begins = [0] + [after for _ in questions]
    tables = [
        [t.to(x.dtype) for t in rope_tables(config, begin + torch.arange(x.shape[2], device=x.device))]
        for begin, x in zip(begins, streams, strict=True)
    ]
    masks = [causal(x.shape[2], x) for x in streams]
    for layer in llama.layers:
        far_k = far_v = None
        for i, x in enumerate(streams):
            attention, mlp = layer.self_attn, layer.mlp
            h = rms_norm(x, layer.input_layernorm.weight, config.rms_norm_eps)
            q, k, v = (
                F.linear(h, proj.weight).view(*x.shape[:3], heads, -1).permute(0, 3, 1, 2, 4)
                for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
            )  # (B, heads, count, length, head size)
            q, k = rotate(q, *tables[i]), rotate(k, *tables[i])
            if far_k is None:
                far_k, far_v = k[:, :, 0], v[:, :, 0]
                h = softmax_attention(q, k, v, masks[i])
            else:
                h = slot_attention(q, k, v, far_k, far_v, masks[i])
            x = x + attention.o_proj(h.permute(0, 2, 3, 1, 4).reshape(x.shape))
            h = rms_norm(x, layer.post_attention_layernorm.weight, config.rms_norm_eps)
            streams[i] = x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    return [rms_norm(x, llama.norm.weight, config.rms_norm_eps) for x in streams[1:]]


def causal(n, like):
    return torch.full((n, n), -30000.0, dtype=like.dtype, device=like.device).triu(1)


def slot_attention(q, k, v, prefix_k, prefix_v, mask):
    """Every question attends to the prefix and, causally, to itself, under one softmax.

    q, k, v: (B, heads, count, length, d); prefix_k, prefix_v: (B, heads, prefix, d).
    """
    scale = q.shape[-1] ** -0.5
    far = (q.flatten(2, 3) @ prefix_k.transpose(-1, -2) * scale).unflatten(2, q.shape[2:4])
    near = q @ k.transpose(-1, -2) * scale + mask
    top = torch.maximum(far.amax(-1, keepdim=True), near.amax(-1, keepdim=True)).detach()
    far, near = (far - top).exp(), (near - top).exp()
    total = far.float().sum(-1, keepdim=True) + near.float().sum(-1, keepdim=True)
    mixed = (far.flatten(2, 3) @ prefix_v).view(q.shape) + near @ v
    return (mixed / total).to(q.dtype)
