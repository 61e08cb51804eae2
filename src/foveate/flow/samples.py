"""What every analysis reads: prompts as a model takes them, with the tokens of the true answer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from foveate.pruning.families import visual_ids
from foveate.pruning.layout import Layout

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")  # inputs of shape (B, L)


@dataclass(frozen=True, eq=False)
class Batch:
    """One or more prompts, padded on the left, and the true answer to each.

    Attributes:
        inputs: what the model is called with, from its processor: `input_ids` (B, L), `attention_mask`, pixels, ...
        answers: for each prompt the token ids of the answer, as they follow the prompt's last token.
        tasks: for each prompt the name of its task; results can be split by it.
        visual: (B, L) bool, where the visual tokens are. Only needed with `inputs_embeds`.
        said: how many tokens of each answer stand at the end of the prompt already.
    """

    inputs: Mapping[str, Tensor]
    answers: Sequence[Sequence[int]]
    tasks: Sequence[str] = ()
    visual: Tensor | None = None
    said: int = 0

    def __post_init__(self) -> None:
        rows = len(next(self.inputs[name] for name in ("input_ids", "inputs_embeds") if name in self.inputs))
        if len(self.answers) != rows:
            raise ValueError(f"{rows} prompts need {rows} answers, not {len(self.answers)}")
        if not self.tasks:
            object.__setattr__(self, "tasks", [""] * rows)

    def __len__(self) -> int:
        return len(self.answers)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(self, inputs={name: x.to(device) for name, x in self.inputs.items()})

    @property
    def targets(self) -> Tensor:
        """The answer token that comes next, (B,) long.

        Raises:
            ValueError: an answer has no token there.
        """
        if any(len(answer) <= self.said for answer in self.answers):
            raise ValueError(f"every prompt needs an answer of at least {self.said + 1} tokens")
        return torch.tensor([answer[self.said] for answer in self.answers])

    @property
    def seeds(self) -> list[int]:
        """For each prompt a number that depends on its tokens only, the same alone and in any batch."""
        if "input_ids" not in self.inputs:
            return [0] * len(self)
        ids, real = self.inputs["input_ids"], self.real
        return [zlib.crc32(row[mask].cpu().numpy().tobytes()) for row, mask in zip(ids, real, strict=True)]

    @property
    def real(self) -> Tensor:
        """Which tokens are not padding, (B, L) bool.

        Raises:
            ValueError: padding on the right.
        """
        inputs = self.inputs["input_ids"] if "input_ids" in self.inputs else self.inputs["inputs_embeds"]
        given = self.inputs.get("attention_mask")
        real = torch.ones(inputs.shape[:2], dtype=torch.bool) if given is None else given.bool()
        if not real[:, -1].all():
            raise ValueError("pad on the left (padding_side='left'): a prompt has to end in the last column")
        return real.to(inputs.device)

    def layout(self, model: PreTrainedModel) -> Layout:
        """Which token of the batch is what."""
        real, visual = self.real, self.visual
        if visual is None:
            if "input_ids" not in self.inputs:
                raise ValueError("inputs_embeds do not show where the visual tokens are: set Batch.visual")
            ids = self.inputs["input_ids"]
            visual = torch.isin(ids, torch.tensor(visual_ids(model.config), device=ids.device))
        answer = torch.zeros_like(real)
        if self.said:
            answer[:, -self.said :] = True
        return Layout.of(visual.to(real.device), real, answer)

    def after(self, tokens: int) -> Batch:
        """The same prompts with the first `tokens` tokens of their answers said, so that the next one is looked at.

        Raises:
            ValueError: an answer is not that long, or the prompts are not token ids.
        """
        if "input_ids" not in self.inputs or any(len(answer) < tokens for answer in self.answers):
            raise ValueError(f"prompts of token ids with answers of at least {tokens} tokens are needed")
        inputs = dict(self.inputs)
        new = torch.tensor([answer[self.said : tokens] for answer in self.answers])  # (B, tokens - said)
        fill = {"input_ids": new, "attention_mask": torch.ones_like(new)}
        for name in PER_TOKEN:
            if name in inputs:
                tail = fill.get(name, torch.zeros_like(new)).to(inputs[name])
                inputs[name] = torch.cat([inputs[name], tail], dim=1)
        visual = None if self.visual is None else pad(self.visual, (0, tokens - self.said))
        return replace(self, inputs=inputs, visual=visual, said=tokens)


def prepare(processor: Any, asked: Sequence[tuple[Any, str, str, str]]) -> Batch:
    """A batch of questions about pictures, by the processor's chat template.

    Args:
        asked: (picture, question, true answer, task) each; a picture is a PIL image.

    Raises:
        ValueError: the processor has no chat template, or answers cannot be told from prompts.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError("the processor has no chat template: build Batch(inputs, answers) from its output yourself")
    prompts, answers, tokenizer = [], [], processor.tokenizer
    for picture, question, answer, _ in asked:
        user = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        prompt = processor.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
        whole = processor.apply_chat_template([user, said], tokenize=False)
        if not whole.startswith(prompt):
            whole = f"{prompt} {answer}"
        before, after = tokenizer(prompt)["input_ids"], tokenizer(whole)["input_ids"]
        if after[: len(before)] != before or len(after) == len(before):
            raise ValueError(f"the answer {answer!r} does not start at a token of its own after the prompt")
        prompts.append(prompt)
        answers.append(after[len(before) :])
    inputs = processor(
        images=[picture for picture, *_ in asked],
        text=prompts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    return Batch(dict(inputs), answers, [task for *_, task in asked])
