"""Greedy generation, its time and its memory, by the same few functions for every command."""

import time
from typing import Any

import torch
from transformers import StoppingCriteria

TIMED_TOKENS = 16  # what every timed run generates, however long an answer is


def generate(model: Any, inputs: Any, new_tokens: int, **settings: Any) -> Any:
    """transformers' greedy `generate`, with its cache."""
    return model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1, return_dict_in_generate=True, **settings
    )


def cache_bytes(model: Any, inputs: Any) -> int:
    """Bytes of the keys and values of the prompt, in all layers."""
    cache = generate(model, inputs, 1).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def time_one(model: Any, inputs: Any) -> tuple[float, float]:
    """Seconds to the first token (vision tower, prompt, and what pruning itself costs), and for each token after it."""
    clock = Clock(model.device)
    generate(model, inputs, TIMED_TOKENS, min_new_tokens=TIMED_TOKENS, stopping_criteria=[clock])
    first, *rest = clock.seconds()
    return first, sum(rest) / len(rest)


class Clock(StoppingCriteria):
    """Notes when each new token is there, with device events on a CUDA device; never stops anything."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ticks: list[Any] = []
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.tick()

    def tick(self) -> None:
        if self.device.type == "cuda":
            self.ticks.append(torch.cuda.Event(enable_timing=True))
            self.ticks[-1].record(torch.cuda.current_stream(self.device))
            return
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.ticks.append(time.perf_counter())

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def seconds(self) -> list[float]:
        """The time that each token took."""
        pairs = zip(self.ticks, self.ticks[1:], strict=False)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]
