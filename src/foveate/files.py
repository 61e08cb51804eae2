"""Files that are there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all; an older one stays until the new one is whole."""
    save(path, lambda half: half.write_text(text, encoding="utf-8"))


def save(path: Path, make: Callable[[Path], object]) -> None:
    """Let `make` write a file beside `path`, which takes its place once it is whole."""
    half = path.with_name(path.name + ".part")
    try:
        make(half)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
