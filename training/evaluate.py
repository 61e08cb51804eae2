"""Accuracy of a checkpoint on held-out scenes, per task, with the picture and with a blank one in its place.

    python training/evaluate.py                      # the embedded mini, 500 questions of each task
    python training/evaluate.py FOLDER --limit 200 --json results.json

`prior` is what always giving the commonest answer would reach on these very questions.
"""

import argparse
import json
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
from foveate.suite.questions import NEGATIVES, TASKS, Question, existence
from foveate.suite.scenes import SIZE, Scene, draw_scene


def held_out_questions(limit: int, seed: int = 0) -> list[tuple[Scene, Question, str]]:
    """(scene, question, row of the table): `limit` questions a task; of existence as many yes as no of each kind.

    Every question has a scene to itself.
    """
    asked = []
    rows = [(f"existence, {kind}", kind) for kind in NEGATIVES] + [(t, None) for t in TASKS if t != "existence"]
    number = seed * 10**7
    for row, kind in rows:
        found = 0
        while found < limit:
            scene, rng = draw_scene("held-out", number), np.random.default_rng([5, number])
            number += 1
            question = existence(scene, rng, kind if found % 2 else None) if kind else TASKS[row](scene, rng)
            if question:
                asked.append((scene, question, row))
                found += 1
    return asked


def answer(model, processor, pictures, questions, batch: int = 32) -> list[str]:
    """Greedy answers of the model, without the question and without surrounding spaces."""
    said = []
    for start in track(range(0, len(questions), batch), description="answering", transient=True):
        piece = slice(start, start + batch)
        prompts = []
        for text in questions[piece]:
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
            prompts.append(processor.apply_chat_template([turn], add_generation_prompt=True))
        inputs = processor(text=prompts, images=pictures[piece], padding=True, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        said += processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def evaluate(model, processor, limit: int, seed: int = 0) -> tuple[dict, list[dict]]:
    """({row: {"right", "blank", "prior", "questions"}}, every answer)."""
    asked = held_out_questions(limit, seed)
    asked.sort(key=lambda item: len(item[1].question))  # batches of like lengths
    questions = [q.question for _, q, _ in asked]
    seen = answer(model, processor, [s.picture for s, _, _ in asked], questions)
    blind = answer(model, processor, [Image.new("RGB", (SIZE, SIZE), (128, 128, 128))] * len(asked), questions)
    records, by_row = [], defaultdict(list)
    for (_, question, row), with_picture, without in zip(asked, seen, blind, strict=True):
        record = {
            "row": row,
            "question": question.question,
            "answers": question.answers,
            "said": with_picture,
            "blank": without,
            "negative": question.negative,
        }
        records.append(record)
        by_row[row].append(record)
        if row.startswith("existence"):
            by_row["existence"].append(record)
    table = {}
    for row, found in by_row.items():
        commonest = Counter(r["answers"][0] for r in found).most_common(1)[0][1]
        table[row] = {
            "right": float(np.mean([r["said"] in r["answers"] for r in found])),
            "blank": float(np.mean([r["blank"] in r["answers"] for r in found])),
            "prior": commonest / len(found),
            "questions": len(found),
        }
    return table, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=foveate.mini_path())
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.float32).to(device).eval()
    table, records = evaluate(model, AutoProcessor.from_pretrained(options.folder), options.limit, options.seed)
    shown = Table("task", "right %", "blank picture %", "prior %", "questions")
    for row, found in sorted(table.items()):
        shown.add_row(row, *(f"{100 * found[k]:.1f}" for k in ("right", "blank", "prior")), str(found["questions"]))
    Console().print(shown)
    if options.json:
        options.json.write_text(json.dumps({"table": table, "answers": records}, indent=1))


if __name__ == "__main__":
    main()
