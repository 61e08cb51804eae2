"""The trace: what was kept where in a prompt and what that cost, for the user."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby

from torch import Tensor
from transformers import PretrainedConfig

from foveate import cost
from foveate.pruning.stages import Prompt


class Trace:
    """What was kept where in the last prompt, and what that cost.

    Attributes:
        stages: the cuts in order; empty if nothing was dropped.
    """

    def __init__(self, prompt: Prompt, config: PretrainedConfig, layers: int):
        self._prompt, self._config, self._layers = prompt, config, layers
        self.stages = prompt.stages

    @cached_property
    def visual(self) -> list[Tensor]:
        """Per sample all visual positions of the prompt, as columns of `input_ids`."""
        return [row.nonzero().flatten() for row in self._prompt.layout.visual]

    @cached_property
    def prompt(self) -> list[int]:
        """Tokens of each sample's prompt, padding not counted."""
        return self._prompt.layout.real.sum(1).tolist()

    @cached_property
    def tokens(self) -> list[list[int]]:
        """Tokens in each decoder layer, per sample: `tokens[layer][sample]`, padding and filler not counted."""
        counts, out = self.prompt, []
        starts = {stage.layer: stage for stage in self.stages}
        for layer in range(self._layers):
            if layer in starts:
                counts = starts[layer].layout.real.sum(1).tolist()
            out.append(counts)
        return out

    @property
    def flops(self) -> int:
        """Exact FLOPs (two per multiply-add) of decoder and LM head over this prompt, whole batch, scoring included.

        The vision tower is not in it; `foveate.cost.prefill` adds it, given the images. It is the method's cost, which
        can be known beforehand: `spared` is not taken off.
        """
        return cost.prefill(self._config, self.tokens, scored=self._prompt.scored, images=0).total

    @property
    def spared(self) -> int:
        """FLOPs of the last layer that were not computed, since nobody looked at more than its last token.

        All tokens had their queries, keys and values made there; attention, its output projection and the FFN ran for
        one token of each sample.
        """
        if not self._prompt.last_alone:
            return 0
        shape = cost.decoder_shape(self._config)
        heads = shape.heads * shape.head_dim
        each = 2 * (shape.hidden * heads + shape.ffn[-1])  # of a token, but for attention
        return sum((n - 1) * (each + 4 * heads * n) for n in self.tokens[-1])

    @property
    def dense_flops(self) -> int:
        """Exact FLOPs of the same with nothing dropped."""
        return cost.prefill(self._config, [self.prompt] * self._layers, images=0).total

    def __str__(self) -> str:
        lines = []
        for sample, total in enumerate(len(row) for row in self.visual):
            kept = [
                f"layer {stage.layer}: {len(stage.kept[sample])} of {total} visual tokens kept" for stage in self.stages
            ]
            runs = groupby(range(self._layers), key=lambda layer: self.tokens[layer][sample])
            spans = [(list(layers), count) for count, layers in runs]
            tokens = ", ".join(f"{span[0]}-{span[-1]}: {count}" for span, count in spans)
            lines.append(f"sample {sample}: {'; '.join(kept) or 'nothing dropped'} (tokens in layers {tokens})")
        ratio = self.flops / self.dense_flops
        lines.append(f"prefill {self.flops / 1e9:.3f} GFLOPs, {ratio:.1%} of dense ({self.dense_flops / 1e9:.3f})")
        return "\n".join(lines)

    __repr__ = __str__
