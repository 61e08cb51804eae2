"""The cases of golden/: numbers that other implementations computed. See golden/README.md."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in INDEX["cases"]}

# index.json states them in words: "logits and hidden atol 1e-3 in float32" and so on, the same in every case
ATOL_LOGITS = 1e-3
RTOL_SCORES = 1e-3
KL = {"atol": 1e-4, "rtol": 1e-3}
ATOL_COS = 2e-5
ATOL_C_NORM = 5e-4


def names(*methods: str) -> list[str]:
    return [name for name, case in CASES.items() if case["method"] in methods]


@cache
def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / CASES[name]["file"])


@cache
def weights(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and state dict of the `LlamaForCausalLM` that a case belongs to."""
    path = FOLDER / CASES[name]["weights_file"]
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    return config, load_file(path)


def visual_positions(name: str) -> list[int]:
    """From the token ids, as a user has them; the index' image span only confirms it."""
    ids, placeholder = tensors(name)["input_ids"], CASES[name]["placeholder_id"]
    return (ids == placeholder).nonzero().flatten().tolist()


def embeddings(name: str) -> torch.Tensor:
    """(n, 64) float32: the token embeddings with the image features in the placeholders' places."""
    _, state = weights(name)
    case = tensors(name)
    embeds = state["model.embed_tokens.weight"][case["input_ids"]].clone()
    embeds[visual_positions(name)] = case["image_features"]
    return embeds
