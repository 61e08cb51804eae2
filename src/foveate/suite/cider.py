"""CIDEr-D: how much of what people say about a picture a caption says, rare phrases counting most.

CIDEr: Consensus-based Image Description Evaluation (Vedantam et al., CVPR 2015), https://arxiv.org/abs/1411.5726
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from foveate.suite.words import tokens

LONGEST = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of the penalty for a caption of another length


def cider(captions: Mapping[int, str], truths: Sequence[Sequence[str]]) -> dict[int, float]:
    """CIDEr-D of each caption, 0 to 10 (Sec. 5 and Eq. 8 of the paper).

    captions: caption of picture i, for some or all pictures. truths: the reference captions of every picture; how rare
    an n-gram is, is counted over all of them, so that a single picture scores 0.
    """
    counted = [[ngrams(text) for text in texts] for texts in truths]
    pictures = Counter(gram for texts in counted for gram in set().union(*texts))
    rarity = {gram: math.log(len(truths)) - math.log(count) for gram, count in pictures.items()}
    unseen = math.log(max(len(truths), 1))

    def weigh(counts: Counter) -> list[dict]:
        """TF-IDF vectors, one for each length of n-gram."""
        vectors: list[dict] = [{} for _ in range(LONGEST)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return vectors

    scores = {}
    for picture, caption in captions.items():
        counts = ngrams(caption)
        said, length = weigh(counts), words(counts)
        each = [
            math.exp(-((length - words(reference)) ** 2) / (2 * SIGMA**2)) * clipped_cosine(said, weigh(reference))
            for reference in counted[picture]
        ]
        scores[picture] = 10 * sum(each) / len(each)
    return scores


def ngrams(text: str) -> Counter:
    said = tokens(text)
    return Counter(tuple(said[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(said) - n + 1))


def words(counts: Counter) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)


def clipped_cosine(said: Sequence[Mapping], truth: Sequence[Mapping]) -> float:
    """Mean over n of the cosine in which no n-gram counts for more than the reference has of it."""
    total = 0.0
    for a, b in zip(said, truth, strict=True):
        scale = norm(a) * norm(b)
        if scale > 0:
            total += sum(min(weight, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, weight in a.items()) / scale
    return total / LONGEST


def norm(vector: Mapping) -> float:
    return math.sqrt(sum(weight**2 for weight in vector.values()))
