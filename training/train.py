"""Trains mini: first the tower alone (`tower`), then everything (`whole`). See README.md in this folder.

    python training/train.py tower --steps 3000
    python training/train.py whole --steps 5000

Killed at any moment, the same command goes on from its last checkpoint in training/runs/PHASE/.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import data
from export import export, plot
from model import build, read, rms_norm, see
from optimiser import Optimiser
from tokenizer import IMAGE, SYSTEM, USER, make_processor, run_tokenizer

RUNS = Path(__file__).parent / "runs"
# What is learnt early gets less, what comes late more. Long answers have many tokens, hard at first: at full weight
# their noise would drown the rest.
LATE, EARLY = dict.fromkeys(("existence", "name", "count", "relation"), 1.5), 0.6
LONG = {"choice": 0.6, "read": 1.0, "describe": 0.3}
TASK_WEIGHTS = [(LATE | LONG).get(task, EARLY) for task in data.TASK_NAMES]
GROUP_WEIGHTS = [3.0 if group == "number" else 1.0 for group in data.groups()]  # most things are the only ones
TOWER_SHARE = 0.3  # of the learning rate, for the tower and the projector in the phase of the whole


class Mini(torch.nn.Module):
    """The model with what only training needs: the words that patches are taught, and a `none` for each kind."""

    def __init__(self, tokenizer, **sizes):
        super().__init__()
        self.llava = build(len(tokenizer), tokenizer.convert_tokens_to_ids(IMAGE), **sizes)
        width = self.llava.config.text_config.hidden_size
        words = [[tokenizer(w, add_special_tokens=False).input_ids for w in group] for group in data.groups().values()]
        self.group_sizes = [len(group) for group in words]
        self.register_buffer("taught", torch.tensor([ids[0] for group in words for ids in group]))
        self.none = torch.nn.Parameter(torch.zeros(len(words), width))
        prompt = f"{SYSTEM} {USER} {IMAGE}"
        self.register_buffer("system", torch.tensor(tokenizer(prompt).input_ids[:-1]))

    def patch_loss(self, features, labels):
        """Each projected patch must name, through the word embeddings, what it shows; also the accuracy per group.

        features (B, 144, D); labels (B, 144, groups). Patches of the background count a fifth, those of -1 nothing.
        """
        words = self.llava.model.language_model.embed_tokens.weight
        known = rms_norm(features, torch.ones_like(features[0, 0]), 1e-5)
        logits = (known @ torch.cat([words[self.taught], self.none]).T).float()
        total, right, start = 0.0, [], 0
        weight = torch.where(labels[..., 0] < self.group_sizes[0], 1.0, 0.2) * (labels[..., 0] >= 0)
        labels = labels.clamp(min=0)
        for g, size in enumerate(self.group_sizes):
            none = logits[..., len(self.taught) + g, None]
            some = torch.cat([logits[..., start : start + size], none], dim=-1)
            loss = F.cross_entropy(some.flatten(0, 1), labels[..., g].flatten(), reduction="none")
            total = total + GROUP_WEIGHTS[g] * (loss.view_as(weight) * weight).mean()
            shown = (labels[..., g] < size) & (weight > 0)
            right.append(((some.argmax(-1) == labels[..., g]) & shown).sum() / shown.sum().clamp(min=1))
            start += size
        return total, torch.stack(right)

    def tower(self, pixels, labels):
        """The first phase: (loss, accuracy per group)."""
        return self.patch_loss(see(self.llava, self.normalise(pixels)), labels)

    def whole(self, pixels, labels, short, long, at, target, weight, patch_weight):
        """The second phase: (loss, accuracy per group, which answer tokens (B, TARGETS) are right)."""
        features = see(self.llava, self.normalise(pixels))
        patch_loss, right = self.patch_loss(features, labels)
        hidden = read(self.llava, self.system, features[: len(short)], [short, long])
        hidden = torch.cat([h.flatten(1, 2) for h in hidden], dim=1)
        hidden = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = (hidden @ self.llava.model.language_model.embed_tokens.weight.T).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none", ignore_index=-100)
        loss = (loss * weight.flatten()).sum() / weight.sum()
        return loss + patch_weight * patch_loss, right, logits.argmax(-1) == target

    def normalise(self, pixels):
        return pixels.to(self.none.dtype) / 127.5 - 1


def optimiser_for(mini: Mini, phase: str, words: bool = True) -> Optimiser:
    """The tower's phase has high rates; with the whole, what it has taught moves at a part of the rate.

    Without `words` the tower learns to speak in the words as they are: those that a trained decoder hangs on.
    """
    inside = ("vision_tower", "multi_modal_projector", "none", *(["embed_tokens"] if words else []))
    named = {n: p for n, p in mini.named_parameters() if phase == "whole" or any(part in n for part in inside)}
    named = {n: p for n, p in named.items() if "post_layernorm" not in n}  # LLaVA takes the features before it
    special = ("embed_tokens", "position_embedding", "none")
    matrices = [n for n, p in named.items() if p.ndim == 2 and not any(s in n for s in special)]
    if phase == "tower":
        return Optimiser(named, matrices, muon_lr=0.02, adam_lr=2e-3)
    share = {n: TOWER_SHARE for n in named if "vision_tower" in n or "multi_modal_projector" in n}
    return Optimiser(named, matrices, share, muon_lr=0.012, adam_lr=1.5e-3)


@torch.no_grad()
def begin(mini: Mini, states: list[dict]) -> None:
    """The weights of other phases, also those that this phase leaves as they are.

    What those had not yet starts as if it were not there: layers of the tower as identities, kinds of words as unused.
    """
    named = dict(mini.named_parameters())
    for state in states:
        none = state["master"]["none"]
        state["master"]["none"] = F.pad(none, (0, 0, 0, len(mini.none) - len(none)))
        for n, saved in state["master"].items():
            named[n].copy_(saved)
    held = {n for state in states for n in state["master"]}
    for n, p in named.items():
        if states and n not in held and n.endswith(("self_attn.out_proj.weight", "mlp.fc2.weight")):
            p.zero_()


@torch.no_grad()
def settle(mini: Mini, optimiser: Optimiser, pixels) -> None:
    """Scales the projector's last layer, and its learning rate, so that a patch is about as long as a word.

    Teaching the tower does not see how long the projected patches are, and they grow without end; in the decoder's
    residual stream such patches would drown whatever the layers add to them.
    """
    features = see(mini.llava, mini.normalise(pixels)).float()
    factor = 0.3 / features.pow(2).mean().sqrt().item()
    for n in optimiser.master:
        if "multi_modal_projector.linear_2" in n:
            optimiser.scale(n, factor)


def rate(step: int, steps: int, decay: float, peak: float = 1.0) -> float:
    """Learning-rate factor: a short warm-up to `peak`, then a linear way down to zero over the share `decay`."""
    return peak * min(1.0, (step + 1) / 60, (steps - step) / max(1, decay * steps))


def run(
    phase, tokenizer, steps, folder, *, batch=16, seed=0, start=(), simple=0, workers=1, decay=0.5, peak=1.0,
    device="cpu", dtype=torch.bfloat16, compiled=True, save_every=100, log_every=20, stop_at=None, patch_weight=0.3,
    sizes=None,
):  # fmt: skip
    """Trains one phase and returns the `Mini`; checkpoints, log.jsonl and curves.png go to `folder`.

    `start`: checkpoints of other phases, whose weights it begins with; a later one replaces what both hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mini = Mini(tokenizer, seed=seed, **(sizes or {})).to(device, dtype)
    start = [torch.load(path, map_location=device)["optimiser"] for path in start]
    begin(mini, start)
    optimiser = optimiser_for(mini, phase, words=not start)
    checkpoint, step, spent = folder / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        optimiser.load(saved["optimiser"])
        torch.set_rng_state(saved["rng"].cpu())
        step, spent = saved["step"], saved["seconds"]
    elif start:
        for state in start:
            optimiser.load(state, moments=False)
        if phase == "whole" and not any("language_model.layers" in n for n in start[-1]["master"]):
            pixels = data.draw_batch(tokenizer, seed, 0, batch, 6, False).pixels
            settle(mini, optimiser, torch.from_numpy(pixels).to(device))
    if phase == "tower":  # what stays as it is has no optimiser, but a checkpoint holds everything that matters
        for n, p in mini.named_parameters():
            p.requires_grad_(n in optimiser.named)
    forward = getattr(mini, phase)
    forward = torch.compile(forward, dynamic=False) if compiled else forward
    source = data.batches(tokenizer, seed + (10 if phase == "tower" else 20), step, steps, batch, simple,
                          phase == "whole", workers)  # fmt: skip
    log, tally, began = (folder / "log.jsonl").open("a"), defaultdict(list), time.time()
    text, times = TextColumn("{task.description}"), (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(text, BarColumn(), MofNCompleteColumn(), *times, refresh_per_second=0.5) as bar:
        shown = bar.add_task(phase, total=steps, completed=step)
        for drawn in source:
            inputs = tensors(drawn, device, phase, patch_weight)
            loss, right, *answers = forward(*inputs)
            loss.backward()
            optimiser.step(rate(step, steps, decay, peak))
            step += 1
            tally["loss"].append(loss.item())
            for group, value in zip(data.groups(), right.tolist(), strict=True):
                tally[f"patch {group}"].append(value)
            if answers:
                for task, value in exact(drawn, answers[0].cpu().numpy()):
                    tally[task].append(value)
            if step % log_every == 0 or step == steps:
                means = {k: round(float(np.mean(v)), 4) for k, v in tally.items()}
                seconds = spent + time.time() - began
                log.write(json.dumps({"step": step, "seconds": round(seconds, 1), **means}) + "\n")
                log.flush()
                tally.clear()
                bar.update(shown, completed=step, description=f"{phase} loss {means['loss']:.3f}")
            if step % save_every == 0 or step in (steps, stop_at):
                save(checkpoint, optimiser, step, spent + time.time() - began)
                plot(folder)
            if step == stop_at:
                break
    return mini


def tensors(drawn, device, phase, patch_weight):
    pixels, labels = torch.from_numpy(drawn.pixels), torch.from_numpy(drawn.patches)
    if phase == "tower":
        return [pixels.to(device), labels.to(device)]
    task = np.take_along_axis(drawn.tasks, drawn.asked, 1)
    weight = np.take(TASK_WEIGHTS, task) * (drawn.target >= 0)
    weight *= np.where(drawn.target == 2, 0.2, 1.0)  # the end of an answer is easy
    parts = (*drawn.questions, drawn.at, drawn.target, weight.astype(np.float32), np.float32(patch_weight))
    return [t.to(device) for t in (pixels, labels, *(torch.as_tensor(p) for p in parts))]


def exact(drawn, right):
    """(task, 1 or 0) for every question: whether its whole answer is right, as greedy decoding would find it."""
    for b in range(len(right)):
        used = drawn.target[b] >= 0
        for slot in np.unique(drawn.asked[b][used]):
            yield data.TASK_NAMES[drawn.tasks[b, slot]], float(right[b][used & (drawn.asked[b] == slot)].all())


def save(path: Path, optimiser: Optimiser, step: int, seconds: float) -> None:
    """Written aside and renamed, so that a kill never leaves half a checkpoint."""
    aside = path.with_suffix(".part")
    torch.save({"optimiser": optimiser.state(), "step": step, "seconds": seconds, "rng": torch.get_rng_state()}, aside)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("phase", choices=("tower", "whole"))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--simple", type=int, help="batches with at most three things at the start")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the steps over which the rate falls to zero")
    parser.add_argument("--peak", type=float, default=1.0, help="highest rate; less to go on from a trained whole")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--patch-weight", type=float, default=0.3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", nargs="+", help="folders under training/runs whose weights it begins with")
    parser.add_argument("--name", help="folder under training/runs (default: the phase)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = run_tokenizer(RUNS / "tokenizer")
    folder = RUNS / (options.name or options.phase)
    tower = options.phase == "tower"
    start = options.start if options.start is not None else [] if tower else ["tower"]
    mini = run(
        options.phase, tokenizer, options.steps, folder,
        batch=options.batch or (32 if tower else 16), seed=options.seed, decay=options.decay, peak=options.peak,
        simple=options.simple if options.simple is not None else 0 if tower else 400, patch_weight=options.patch_weight,
        start=[RUNS / name / "checkpoint.pt" for name in start], workers=options.workers, device=options.device,
    )  # fmt: skip
    if not tower:
        export(mini.llava, make_processor(tokenizer), folder / "mini")


if __name__ == "__main__":
    main()
