"""Claims: what the papers say about multimodal models, each tested on this one.

A claim is a number, the side of a threshold on which the paper puts it, and words. It is confirmed if the whole 95 %
interval over samples lies on that side, not confirmed if it lies on the other, and not decidable at this sample size
if it holds the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foveate.flow.knockout import bias_ratio
from foveate.flow.result import Means, Result, Statistic
from foveate.flow.withdrawal import ETA

CONFIRMED, REFUTED, OPEN = "confirmed", "not confirmed", "not decidable at this sample size"
AGREE = 0.95  # share of unchanged answers that counts as "without loss"
FEW = 0.1  # share of the visual tokens that counts as "a few"


@dataclass(frozen=True)
class Claim:
    """A paper's claim and what this model shows.

    Attributes:
        measured: what was measured, in words. value, low, high: the number and its 95 % interval.
        threshold: where the claim becomes wrong; above: whether the paper puts the number above it.
    """

    paper: str
    text: str
    measured: str
    value: float
    low: float
    high: float
    threshold: float
    above: bool

    @property
    def verdict(self) -> str:
        """One of "confirmed", "not confirmed", "not decidable at this sample size"."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return OPEN
        right, wrong = (self.low > self.threshold, self.high <= self.threshold)
        if not self.above:
            right, wrong = (self.high <= self.threshold, self.low > self.threshold)
        return CONFIRMED if right else REFUTED if wrong else OPEN

    @property
    def words(self) -> str:
        """The finding in a sentence."""
        side = "above" if self.above else "at most"
        return (
            f"{self.measured}: {self.value:.3g} (95 % interval {self.low:.3g} to {self.high:.3g}; "
            f"the claim needs {side} {self.threshold:g})."
        )


def claims(results: Mapping[str, Result], visual: float) -> list[Claim]:
    """Every claim that the results at hand can test.

    Args:
        results: by name of the analysis: saliency, knockout, withdrawal, windows, allocation, critical, merging.
        visual: mean number of visual tokens of a prompt.
    """
    depth = len(next(iter(results.values())).labels["layer"])
    quarter, shallow, deep = slice(0, max(1, depth // 4)), max(1, round(depth * 6 / 32)), round(depth * 24 / 32)
    half = slice(depth // 2, max(depth - 1, depth // 2 + 1))  # without the last layer, where only the last row counts
    first_layers, second_half = f"the first {quarter.stop} layers", f"layers {half.start} to {half.stop - 1}"

    def ratio(name: str, other: str, layers: slice) -> Statistic:
        return lambda mean: np.log(mean[name][..., layers] / mean[other][..., layers]).mean(-1)

    def at(name: str, layer: int) -> Statistic:
        return lambda mean: mean[name][..., layer]

    def bias(layers: slice) -> Statistic:
        """D of a stretch of layers: of the sums, which exist where a single layer changes nothing."""

        def of_sums(mean: Means) -> np.ndarray:
            sums = {key: x[..., layers].mean(-1, keepdims=True) for key, x in mean.items()}
            return bias_ratio(results["knockout"])(sums)[..., 0]

        return of_sums

    def per_edge(mean: Means) -> np.ndarray:
        edge = mean["edge"][..., half, :, :]  # (..., layer, reader, source); 1 is the image, 2 the instruction
        return np.log(edge[..., 1, 1] / edge[..., 2, 1]).mean(-1)

    def migrates(mean: Means) -> np.ndarray:
        image = mean["last"][..., 1]
        return image[..., half].mean(-1) - image[..., : half.start].mean(-1)

    def beside_system(mean: Means) -> np.ndarray:
        shares = mean["last_token"][..., 2:, :]
        return np.log10(shares[..., 1] / shares[..., 0]).mean(-1)

    table: list[tuple[str, str, str, str, Statistic, float, bool]] = [
        (
            "HiMAP",
            "In shallow layers visual information flows mostly into the text.",
            "saliency",
            f"mean log(S_vt / S_vv) in {first_layers}",
            ratio("S_vt", "S_vv", quarter),
            0.0,
            True,
        ),
        (
            "HiMAP",
            "In deep layers visual tokens mostly exchange information among themselves.",
            "saliency",
            f"mean log(S_vv / S_vt) in {second_half}",
            ratio("S_vv", "S_vt", half),
            0.0,
            True,
        ),
        (
            "HiMAP",
            "The same counted per edge, since there are more edges inside the image.",
            "saliency",
            f"mean log(S_vv / S_vt) per edge in {second_half}",
            per_edge,
            0.0,
            True,
        ),
        (
            "HiMAP",
            "In shallow layers the prediction depends more on what text reads from the picture than on what the "
            "picture reads from itself.",
            "knockout",
            f"bias ratio D of {first_layers}, effects summed",
            bias(quarter),
            0.0,
            False,
        ),
        (
            "HiMAP",
            "In deep layers it is the other way round.",
            "knockout",
            f"bias ratio D of {second_half}, effects summed",
            bias(half),
            0.0,
            True,
        ),
        (
            "FastV",
            "After layer 2 a visual token gets far less attention than a token of the system prompt.",
            "allocation",
            "mean log10(attention per visual token / per system token) of the last row from layer 2 on",
            beside_system,
            -1.0,
            False,
        ),
        (
            "VTW",
            "Attention leaves the picture with depth.",
            "allocation",
            f"share of the last row's attention on the picture, {second_half} less the layers before",
            migrates,
            0.0,
            False,
        ),
        (
            "VTW",
            "All visual tokens can be withdrawn at half depth.",
            "withdrawal",
            f"KL(withdrawn || full) at layer {half.start}, nats",
            at("kl", half.start),
            ETA,
            False,
        ),
        (
            "VisiPruner",
            f"Text need not read the picture in shallow layers ({shallow} of {depth}, as 6 of 32).",
            "windows",
            "share of unchanged answers",
            at("first_same", shallow - 1),
            AGREE,
            True,
        ),
        (
            "VisiPruner",
            "In shallow layers one visual token can take the attention of all.",
            "merging",
            f"share of unchanged answers with attention merged in {shallow} layers",
            at("first_same", shallow - 1),
            AGREE,
            True,
        ),
        (
            "VisiPruner",
            "In shallow layers attention on the picture goes to tokens with small value vectors.",
            "allocation",
            f"attention-weighted over plain mean value length in the first {shallow} layers",
            lambda mean: mean["norm_ratio"][..., :shallow].mean(-1),
            1.0,
            False,
        ),
        (
            "VisiPruner",
            "Only a few visual tokens matter to the answer position, even in the layer where most do.",
            "critical",
            "largest mean share of visual tokens with cos(O - c, O) < 0.995",
            lambda mean: mean["critical"].max(-1) / visual,
            FEW,
            False,
        ),
        (
            "VisiPruner",
            f"Deep layers need no visual token (from layer {deep} of {depth}, as 24 of 32).",
            "withdrawal",
            "share of unchanged answers",
            at("same", deep),
            AGREE,
            True,
        ),
    ]
    found = []
    for paper, text, analysis, measured, statistic, threshold, above in table:
        if analysis in results:
            result = results[analysis]
            value, (low, high) = float(result.mean(statistic)), map(float, result.interval(statistic))
            if threshold == AGREE:
                low, high = unanimous(value, low, high, len(result))
            found.append(Claim(paper, text, measured, value, low, high, threshold, above))
    return found


def unanimous(share: float, low: float, high: float, samples: int) -> tuple[float, float]:
    """The interval of a share; exact (Clopper and Pearson) where all samples agree, which no resample can doubt."""
    bound = 0.025 ** (1 / samples)
    return min(low, bound) if share == 1 else low, max(high, 1 - bound) if share == 0 else high
