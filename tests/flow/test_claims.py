"""The number behind every claim, against sums written out sample by sample and layer by layer."""

from math import log, log10

import numpy as np
import pytest

from foveate.flow.claims import AGREE, Claim, claims
from foveate.flow.result import Result

# Of eight layers: the first quarter, the second half without the last layer, 6 of 32, 24 of 32.
DEPTH, QUARTER, HALF, SHALLOW, DEEP = 8, (0, 1), (4, 5, 6), (0, 1), 6
SAMPLES, VISUAL = 5, 40.0
SYSTEM, IMAGE, INSTRUCTION = 0, 1, 2
KINDS = ["visual-textual", "intra-visual", "intra-textual"]


def of_random_values(name: str, **shapes: tuple[int, ...]) -> Result:
    rng = np.random.default_rng(len(name))
    values = {key: rng.uniform(0.1, 0.9, (SAMPLES, *shape)) for key, shape in shapes.items()}
    labels = {"layer": list(range(DEPTH)), "kind": KINDS}
    return Result(name, values, {}, labels, ["count"] * SAMPLES)


RESULTS = {
    "saliency": of_random_values("saliency", S_vt=(DEPTH,), S_vv=(DEPTH,), edge=(DEPTH, 3, 3)),
    "knockout": of_random_values("knockout", jaccard=(len(KINDS), DEPTH)),
    "withdrawal": of_random_values("withdrawal", kl=(DEPTH,), same=(DEPTH,)),
    "windows": of_random_values("windows", first_same=(DEPTH,)),
    "allocation": of_random_values("allocation", last=(DEPTH, 3), last_token=(DEPTH, 3), norm_ratio=(DEPTH,)),
    "critical": of_random_values("critical", critical=(DEPTH,)),
    "merging": of_random_values("merging", first_same=(DEPTH,)),
}


def mean(analysis: str, value: str, *at: int) -> float:
    """Over the samples, at one place."""
    return sum(float(sample[at]) for sample in RESULTS[analysis][value]) / SAMPLES


def over(layers, number) -> float:
    return sum(number(layer) for layer in layers) / len(layers)


def moved(kind: str, layers) -> float:
    return sum(1 - mean("knockout", "jaccard", KINDS.index(kind), layer) for layer in layers)


def saliency(layer: int, over_other: str, other: str) -> float:
    return log(mean("saliency", over_other, layer) / mean("saliency", other, layer))


def per_edge(layer: int) -> float:
    return log(mean("saliency", "edge", layer, IMAGE, IMAGE) / mean("saliency", "edge", layer, INSTRUCTION, IMAGE))


def beside_system(layer: int) -> float:
    return log10(mean("allocation", "last_token", layer, IMAGE) / mean("allocation", "last_token", layer, SYSTEM))


def on_picture(layer: int) -> float:
    return mean("allocation", "last", layer, IMAGE)


EXPECTED = {
    "In shallow layers visual information flows": over(QUARTER, lambda at: saliency(at, "S_vt", "S_vv")),
    "In deep layers visual tokens mostly exchange": over(HALF, lambda at: saliency(at, "S_vv", "S_vt")),
    "The same counted per edge": over(HALF, per_edge),
    "In shallow layers the prediction": log(moved("intra-visual", QUARTER) / moved("visual-textual", QUARTER)),
    "In deep layers it is the other way": log(moved("intra-visual", HALF) / moved("visual-textual", HALF)),
    "After layer 2": over(range(2, DEPTH), beside_system),
    "Attention leaves the picture": over(HALF, on_picture) - over(range(4), on_picture),
    "All visual tokens can be withdrawn at half depth": mean("withdrawal", "kl", 4),
    "Text need not read the picture": mean("windows", "first_same", 1),
    "In shallow layers one visual token": mean("merging", "first_same", 1),
    "In shallow layers attention on the picture": over(SHALLOW, lambda at: mean("allocation", "norm_ratio", at)),
    "Only a few visual tokens matter": max(mean("critical", "critical", at) for at in range(DEPTH)) / VISUAL,
    "Deep layers need no visual token": mean("withdrawal", "same", DEEP),
}


def claim_of(start: str, results: dict[str, Result]) -> Claim:
    (found,) = (claim for claim in claims(results, VISUAL) if claim.text.startswith(start))
    return found


@pytest.mark.parametrize("start", EXPECTED)
def test_the_number_of_a_claim_is_what_its_words_say(start):
    claim = claim_of(start, RESULTS)
    assert claim.value == pytest.approx(EXPECTED[start])
    assert claim.low <= claim.value <= claim.high and claim.low < claim.high


def test_every_claim_has_its_expectation_here():
    assert len(claims(RESULTS, VISUAL)) == len(EXPECTED)


def test_claims_are_made_of_the_analyses_at_hand_alone():
    found = claims({"windows": RESULTS["windows"]}, VISUAL)
    assert [claim.paper for claim in found] == ["VisiPruner"]


def test_a_share_that_all_samples_agree_on_has_the_exact_interval():
    """With 5 of 5 the share may be as low as p with p^5 = 0.025."""
    windows = RESULTS["windows"]
    same = Result("windows", {"first_same": np.ones((SAMPLES, DEPTH))}, {}, windows.labels, windows.tasks)
    claim = claim_of("Text need not read the picture", {"windows": same})
    assert (claim.value, claim.high) == (1.0, 1.0) and claim.low**5 == pytest.approx(0.025)
    assert claim.low < AGREE and claim.verdict == "not decidable at this sample size"
