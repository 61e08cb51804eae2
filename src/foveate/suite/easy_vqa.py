"""easy-VQA (Victor Zhou, 2019, MIT): one coloured shape on a light ground, and questions that nobody here wrote.

The pictures and questions come with the package `easy-vqa`, which is not a dependency; its train split was trained on,
its test split never. They are brought to the form of the suite: questions as they are, pictures as they are (64 x 64).
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Asked:
    """One picture of easy-VQA and everything asked about it."""

    path: Path
    questions: tuple[tuple[str, str], ...]  # (question, answer)

    def picture(self) -> Image.Image:
        with Image.open(self.path) as picture:
            return picture.convert("RGB")


def easy_vqa(split: str) -> list[Asked]:
    """All pictures of a split, by their number. ImportError with the remedy where the package is missing."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; easy-VQA has {' and '.join(SPLITS)}")
    try:
        import easy_vqa as package
    except ImportError:
        raise ImportError("easy-VQA is not installed: pip install easy-vqa") from None
    train = split == "train"
    texts, answers, numbers = package.get_train_questions() if train else package.get_test_questions()
    paths = package.get_train_image_paths() if train else package.get_test_image_paths()
    asked: dict[int, list[tuple[str, str]]] = {number: [] for number in sorted(paths)}
    for text, answer, number in zip(texts, answers, numbers, strict=True):
        asked[number].append((text, answer))
    return [Asked(Path(paths[number]), tuple(questions)) for number, questions in asked.items()]
