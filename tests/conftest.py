"""One thread, nothing from the network, and a picture of transformers as it was before any test used foveate."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import logging
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

torch.set_num_threads(1)
sys.path.append(str(Path(__file__).parent / "cost"))  # the tiny configurations of all families live there
logging.set_verbosity_error()

# A few dozen examples of every property, always the same; `HYPOTHESIS_PROFILE=long` draws 5,000 in all, always others.
EVERYWHERE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much]}
settings.register_profile("short", max_examples=30, derandomize=True, **EVERYWHERE)
settings.register_profile("long", max_examples=1700, **EVERYWHERE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

REGISTRIES_BEFORE = (dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS))


@pytest.fixture
def registries_before():
    """The attention and the mask registry of transformers, as they were before any test ran."""
    return REGISTRIES_BEFORE


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
