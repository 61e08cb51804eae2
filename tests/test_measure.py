"""Times belong to the token that took them, and every run generates as many tokens as it says."""

import time
from types import SimpleNamespace

import torch

import tiny
from foveate import measure


class Sleeper:
    """A model that takes 40 ms for the first token and 4 ms for each other."""

    device = torch.device("cpu")

    def generate(self, max_new_tokens, min_new_tokens, stopping_criteria, **settings):
        assert max_new_tokens == min_new_tokens == measure.TIMED_TOKENS
        for token in range(max_new_tokens):
            time.sleep(0.004 if token else 0.04)
            for criterion in stopping_criteria:
                assert not criterion(torch.zeros(1, token + 1), None).any()
        return SimpleNamespace()


def test_the_first_token_is_told_from_those_after_it():
    first, each = measure.time_one(Sleeper(), {})
    # Sleeping may take longer on a busy machine, and never less.
    assert first >= 0.04 and each >= 0.004
    assert each < first


def test_a_timed_run_goes_on_behind_the_end_of_the_answer():
    model, inputs = tiny.model("llava-mha", "sdpa"), tiny.batch(*tiny.forms("llava-mha")["one"])
    ids = measure.generate(model, inputs, 8, min_new_tokens=8).sequences
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 8
    assert min(measure.time_one(model, inputs)) > 0


def test_the_cache_is_the_prompts_alone():
    model, inputs = tiny.model("llava-gqa", "sdpa"), tiny.batch(*tiny.forms("llava-gqa")["one"])
    heads, size = tiny.HEADS // 2, tiny.WIDTH // tiny.HEADS
    assert measure.cache_bytes(model, inputs) == inputs["input_ids"].shape[1] * tiny.LAYERS * 2 * heads * size * 4
