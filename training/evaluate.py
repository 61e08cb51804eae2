"""What a checkpoint can do on held-out scenes and on easy-VQA's test split, with the picture and with a blank one.

    python training/evaluate.py                      # the embedded mini, 300 questions of each task
    python training/evaluate.py FOLDER --limit 100 --easy-vqa 500 --json results.json

Each task is scored by its own metric. `prior` is what answering without looking reaches (see `Prior`). Scenes come
from a seed of their own, which no benchmark uses by default.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate.suite.easy_vqa import easy_vqa
from foveate.suite.metrics import METRICS, score
from foveate.suite.questions import TASKS, ask, plural
from foveate.suite.scenes import COLOURS, SHAPES, SIZE, draw_scene, pictograms
from foveate.suite.tasks import DRAWN, Sample, draw

BLANK = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))


def samples_of(limit: int, easy: int, seed: int) -> list[Sample]:
    """`limit` questions of each task (of existence for each kind of negatives), `easy` of easy-VQA."""
    others = tuple(task for task in DRAWN if task != "existence")
    asked = [*draw(("existence",), 3 * limit, seed), *draw(others, limit, seed)]
    return asked + (draw(("easy-vqa",), easy, seed) if easy else [])


NAMES = {w for n in (*SHAPES, *pictograms(), *COLOURS) for w in (n, plural(n))}
NAMED = rf"\b(?:{'|'.join(sorted(NAMES, key=len, reverse=True))})\b"


def form(question: str) -> str:
    """A question without the names and colours in it, as in: how many _ are there?"""
    return re.sub(rf"\b(an? )?{NAMED}", "_", question)


class Prior:
    """Answers without looking, from counts over training's questions.

    What was commonest for a question's form; for whether a thing is there, and for how many of it there are, what was
    commonest for that thing (some are drawn more often); of four options, the one that was right most often when it was
    offered; on easy-VQA, what was commonest for the question itself.
    """

    def __init__(self, scenes: int = 5000):
        self.counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
        self.right, self.offered = Counter(), Counter()
        for seed in range(scenes):
            tasks = (*TASKS, *["existence"] * 9)
            for q in ask(draw_scene("train", 2 * 10**9 + seed), np.random.default_rng([9, seed]), tasks):
                self.counts[q.task, self.key(q.task, q.question)][q.answers[0]] += 1
                if q.task == "choice":
                    self.right[q.answers[1]] += 1
                    self.offered.update(options(q.question).values())
        for shown in easy_vqa("train"):
            for question, reply in shown.questions:
                self.counts["easy-vqa", self.key("easy-vqa", question)][reply] += 1

    def __call__(self, task: str, question: str) -> str:
        if task == "choice":
            given = options(question)
            return max(given, key=lambda letter: self.right[given[letter]] / (self.offered[given[letter]] + 1))
        known = self.counts[task, self.key(task, question)]
        return known.most_common(1)[0][0] if known else ""

    def key(self, task: str, question: str) -> str:
        """What of a question the prior goes by."""
        if task in ("existence", "count"):
            return " ".join(re.findall(NAMED, question))
        return question if task == "easy-vqa" else form(question)


def options(question: str) -> dict[str, str]:
    """The options of a multiple choice question by their letters."""
    return {letter: text.strip() for letter, text in re.findall(r"([a-d])\) (.+?)(?= [b-d]\)|$)", question)}


def answer(model, processor, samples: list[Sample], blank: bool, batch: int = 32) -> list[str]:
    """Greedy answers, without the question and without surrounding spaces."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].longest, len(samples[i].question)))
    said = [""] * len(samples)
    starts = range(0, len(order), batch)
    for start in track(starts, description="answering" + " blind" * blank, transient=True):
        places = order[start : start + batch]
        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": samples[i].question}]}]
            for i in places
        ]
        prompts = [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
        pictures = [BLANK if blank else samples[i].picture() for i in places]
        inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=max(samples[i].longest for i in places), do_sample=False)
        told = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(places, told, strict=True):
            said[i] = text.strip()
    return said


def evaluate(model, processor, samples: list[Sample]) -> tuple[dict, list[dict]]:
    """({row: {"metric", "score", "blank", ...}}, every answer); a row is a task or a kind of negatives."""
    prior = Prior()
    seen, blind = answer(model, processor, samples, False), answer(model, processor, samples, True)
    rows: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        rows.setdefault(sample.task, []).append(i)
        if sample.kind:
            rows.setdefault(f"{sample.task}, {sample.kind}", []).append(i)
    table = {}
    for row, places in rows.items():
        metric, truths = samples[places[0]].metrics[0], [samples[i].answers for i in places]
        told = {"score": [seen[i] for i in places], "blank": [blind[i] for i in places]}
        told["prior"] = [prior(samples[i].task, samples[i].question) for i in places]
        figures = {k: METRICS[metric].scale * float(score(metric, said, truths).mean()) for k, said in told.items()}
        table[row] = {"metric": METRICS[metric].title, **figures, "questions": len(places)}
    records = [
        {"name": s.name, "kind": s.kind, "question": s.question, "answers": s.answers, "said": a, "blank": b}
        for s, a, b in zip(samples, seen, blind, strict=True)
    ]
    return table, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=foveate.mini_path())
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--easy-vqa", type=int, default=10**6, help="questions of its test split; 0 for none")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.float32).to(device).eval()
    samples = samples_of(options.limit, options.easy_vqa, options.seed)
    table, records = evaluate(model, AutoProcessor.from_pretrained(options.folder), samples)
    shown = Table("task", "metric", "score", "blank picture", "prior", "questions")
    for row, found in table.items():
        shown.add_row(row, found["metric"], *(f"{found[k]:.1f}" for k in ("score", "blank", "prior")),
                      str(found["questions"]))  # fmt: skip
    Console().print(shown)
    if options.json:
        options.json.write_text(json.dumps({"table": table, "answers": records}, indent=1))


if __name__ == "__main__":
    main()
