"""Where a forward pass is: what its hooks tell each other."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.pruning.layout import Layout
from foveate.pruning.stages import Prompt, Stage
from foveate.pruning.view import Counts, Decide


@dataclass(eq=False)
class Forward:
    """One pass through the decoder, over a pruned prompt or over tokens that follow one.

    Attributes:
        prompt: the prompt.
        padding: (B, kv) bool, False on padding; None if there is none.
        decide: the method's decision while the prompt is read; None afterwards.
        host: the prompt's layout on the CPU; None after the prompt.
        counts: what is left in each row at the layer that runs; None after the prompt.
        last_alone: of what the last layer puts out, nobody looks at more than the last token.
        later: tokens read together with the prompt that are none of it, after it: a draft, or an answer without cache.
        stage: in force at the layer that runs; None: nothing has been dropped.
        shared: mask and rope of the stage, by kind of layer.
    """

    prompt: Prompt
    padding: Tensor | None
    decide: Decide | None = None
    host: Layout | None = None
    counts: Counts | None = None
    later: int = 0
    stage: Stage | None = None
    shared: dict[str, tuple[Tensor | None, tuple[Tensor, ...]]] = field(default_factory=dict)
    last_alone: bool = False

    def enter(self, stage: Stage) -> None:
        """From the layer that runs on, `stage` is in force."""
        self.stage, self.shared = stage, {}

    @property
    def layout(self) -> Layout:
        """Of what is left at the layer that runs."""
        return self.prompt.layout if self.stage is None else self.stage.layout

    def layout_on(self, device: torch.device) -> Layout:
        """`layout` on a device; of the whole prompt the CPU has a copy of its own, that nobody has to wait for."""
        if self.host is not None and self.stage is None and device.type == "cpu":
            return self.host
        return self.layout.to(device)

    def columns(self, stage: Stage) -> tuple[Tensor, Tensor | None]:
        """What of the pass runs through a layer on survivors: index (B, M + later), and valid, its like, or None."""
        valid = None if stage.valid is None else pad(stage.valid, (0, self.later), value=True)
        return followed(stage.index, self.prompt.length, self.later), valid


def followed(index: Tensor, start: int, later: int) -> Tensor:
    """An index (B, M), and after it `later` columns in a row from `start` on: (B, M + later)."""
    if not later:
        return index
    return torch.cat([index, torch.arange(start, start + later, device=index.device).expand(len(index), -1)], dim=1)


class Run:
    """The pass that one thread is in.

    Attributes:
        prompt: how long the prompt is of the `generate` that this thread is in; None outside of one.
        announced: a call has reached the base model, which holds the decoder, and not yet the decoder.
        found: (B, L) bool, visual positions of a call that has reached the model and not yet its decoder.
        padding: (B, kv) bool, False on padding, of that call.
        last_alone: nothing but the logits of its last token was asked for.
        forward: the pass through the decoder; None outside, or if nothing is pruned.
        reading: a prompt is being read, so this thread holds the tap.
    """

    prompt: int | None = None
    announced: bool = False
    found: Tensor | None = None
    padding: Tensor | None = None
    last_alone: bool = False
    forward: Forward | None = None
    reading: bool = False


class ThreadRun(threading.local, Run):
    """A `Run` for each thread."""


class Runs:
    """Every thread's run; a graph that is being compiled has its own, since it cannot look at thread-local things."""

    def __init__(self):
        self._of_thread, self._of_graph = ThreadRun(), Run()

    @property
    def current(self) -> Run | ThreadRun:
        return self._of_graph if torch.compiler.is_compiling() else self._of_thread
