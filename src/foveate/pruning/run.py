"""Where a forward pass is: what its hooks tell each other."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveate.pruning.layout import Layout
from foveate.pruning.stages import Prompt, Stage
from foveate.pruning.view import Decide


@dataclass(eq=False)
class Forward:
    """One pass through the decoder, over a pruned prompt or over tokens that follow one.

    Attributes:
        prompt: the prompt.
        padding: (B, kv) bool, False on padding; None if there is none.
        decide: the method's decision while the prompt is read; None afterwards.
        counts: real tokens of each row at the layer that runs. text_counts: those that are not visual.
        stage: in force at the layer that runs; None: nothing has been dropped.
        shared: mask and rope of the stage, by kind of layer.
    """

    prompt: Prompt
    padding: Tensor | None
    decide: Decide | None = None
    counts: list[int] = field(default_factory=list)
    text_counts: list[int] = field(default_factory=list)
    stage: Stage | None = None
    shared: dict[str, tuple[Tensor | None, tuple[Tensor, ...]]] = field(default_factory=dict)

    def enter(self, stage: Stage) -> None:
        """From the layer that runs on, `stage` is in force."""
        self.stage, self.shared = stage, {}

    @property
    def layout(self) -> Layout:
        """Of what is left at the layer that runs."""
        return self.prompt.layout if self.stage is None else self.stage.layout


class Run:
    """The pass that one thread is in.

    Attributes:
        found: (B, L) bool, visual positions of a call that has reached the model and not yet its decoder.
        padding: (B, kv) bool, False on padding, of that call.
        forward: the pass through the decoder; None outside, or if nothing is pruned.
        reading: a prompt is being read, so this thread holds the tap.
    """

    found: Tensor | None = None
    padding: Tensor | None = None
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
