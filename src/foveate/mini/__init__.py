"""The embedded model: a small LLaVA that Foveate's commands and tests run on with nothing downloaded."""

from pathlib import Path


def mini_path() -> str:
    """The folder of the embedded checkpoint; `from_pretrained` of transformers' Auto classes loads it."""
    return str(Path(__file__).parent)
