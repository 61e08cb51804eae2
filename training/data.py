"""Batches of scenes and questions as arrays. Batch number k of a run is always the same, whoever draws it and when.

The picture of a batch comes with what each patch shows (for teaching the tower) and with many questions (for teaching
the whole). It knows the tokenizer, not the model's insides.
"""

import multiprocessing
from dataclasses import dataclass
from functools import cache
from queue import Empty

import numpy as np
from PIL import Image

from foveate.suite.easy_vqa import Asked, easy_vqa
from foveate.suite.questions import NUMBERS, TASKS, Question, ask, existence, quarter
from foveate.suite.scenes import COLOURS, SHAPES, SIZE, Scene, draw_page, draw_scene, pictograms
from model import GRID, PATCH
from tokenizer import ASSISTANT, EOS, ORDINALS

SLOTS = ((14, 16), (2, 32))  # (questions, tokens each) about one picture: short ones, then long ones
# What is asked about each scene; the first that fit are taken, so what is hard to learn comes first. `yes` is there,
# `no` is the hardest of what is not (a colour and a shape of different things, a kindred pictogram).
SHORT = ("read", "count", "no", "yes", "count", "relation", "position", "name", "count", "no", "yes", "read", "count",
         "relation", "position", "name", "colour", "shape", *["existence"] * 6)  # fmt: skip
LONG = ("describe", "choice", "choice")
TEXTS, REPEATS = 0.7, 0.65  # the shares of training scenes with a text in them, and with a thing repeated
TARGETS = 80  # answer tokens kept per picture
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# As on a chessboard: the column and the row of patches that a centre is in.
FILES, RANKS = "abcdefghijkl", "mnopqrstuvwx"
MIDDLES = (np.indices((GRID, GRID))[::-1].reshape(2, -1).T + 0.5) * PATCH  # (144, 2) x and y of each patch's middle
TASK_NAMES = (*TASKS, "easy-vqa")


@dataclass
class Batch:
    """One batch as numpy arrays; B pictures that are asked about, then those to learn letters from."""

    pixels: np.ndarray  # (B + pages, 3, 144, 144) uint8
    patches: np.ndarray  # (B + pages, 144, groups) int64: the word of each group at a patch, the group's size for none
    questions: list[np.ndarray] | None = None  # per slot group (B, count, length) int64
    at: np.ndarray | None = None  # (B, TARGETS) where, in the joined question tokens, a next token is asked for
    target: np.ndarray | None = None  # (B, TARGETS) which token, -100 for unused
    asked: np.ndarray | None = None  # (B, TARGETS) the slot it belongs to
    tasks: np.ndarray | None = None  # (B, slots) the task of each slot as an index into TASK_NAMES


def groups() -> dict[str, list[str]]:
    """The kinds of words that a patch is taught, as they are written in a text (with the leading space)."""
    return {
        "name": [f" {n}" for n in (*SHAPES, *pictograms(), "text")],
        "colour": [f" {c}" for c in COLOURS],
        "row": [" top", " bottom"],
        "column": [" left", " right"],
        "character": list(CHARACTERS),
        "place": [f" {o}" for o in ORDINALS],
        "file": list(FILES),
        "rank": list(RANKS),
        "number": [f" {n}" for n in NUMBERS[1:]],  # how many of its name there are
        "middle": ["*"],  # the one patch of a thing that is nearest to its centre, so that things can be counted
    }


def patch_labels(scene: Scene, words: dict[str, list[str]]) -> np.ndarray:
    """(144, groups): what lies at each patch, by the thing that covers at least a fifth of it."""
    labels = np.tile([len(w) for w in words.values()], (GRID * GRID, 1))
    cut = scene.owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    cover = np.stack([(cut == i).sum(1) for i in range(len(scene.things))] or [np.zeros(GRID * GRID)], axis=1)
    owner = np.where(cover.max(1) >= PATCH * PATCH / 5, cover.argmax(1), -1)
    for i, thing in enumerate(scene.things):
        mine = owner == i
        row, column = quarter(thing).split()
        labels[mine, 0] = words["name"].index(" text" if thing.kind == "text" else f" {thing.name}")
        if thing.colour:
            labels[mine, 1] = words["colour"].index(f" {thing.colour}")
        labels[mine, 2] = words["row"].index(f" {row}")
        labels[mine, 3] = words["column"].index(f" {column}")
        labels[mine, 8] = sum(other.name == thing.name for other in scene.things) - 1
        if mine.any():
            away = np.hypot(*(MIDDLES - thing.centre).T)
            labels[np.where(mine, away, np.inf).argmin(), 9] = 0
        labels[mine, 6], labels[mine, 7] = (min(GRID - 1, int(GRID * c / SIZE)) for c in thing.centre)
        for k, (character, (left, _, right, _)) in enumerate(thing.letters):
            middle = (np.arange(GRID * GRID) % GRID + 0.5) * PATCH
            under = mine & (middle >= left - 2) & (middle <= right + 2)
            labels[under, 4] = words["character"].index(character)
            labels[under, 5] = k
    return labels


def draw_batch(tokenizer, seed: int, number: int, size: int, most: int, with_questions: bool) -> Batch:
    """Batch `number` of the run with this seed: scenes number*size .. of the training split.

    Without questions every fourth picture is a page of texts. With questions every eighth is one of easy-VQA's train
    split, whose patches are not taught; one of sixteen is blanked after it was asked about, so that what is answered
    without a picture is the commonest answer; and size // 2 pages, of which nothing is asked, come on top.
    """
    seeds = range(seed * 10**8 + number * size, seed * 10**8 + (number + 1) * size)
    easy = size // 8 if with_questions else 0
    scenes = [
        draw_page("train", s) if not with_questions and s % 4 == 0 else draw_scene("train", s, most, TEXTS, REPEATS)
        for s in seeds[: size - easy]
    ]
    words = groups()
    pixels, patches = [np.asarray(s.picture) for s in scenes], [patch_labels(s, words) for s in scenes]
    rng = np.random.default_rng([3, seed, number])
    asked = [_about(scene, rng) for scene in scenes] if with_questions else []
    for i in range(size // 16 if with_questions else 0):
        pixels[i] = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), pixels[i].shape)
        patches[i] = np.full_like(patches[i], -1)
    for _ in range(easy):
        shown = _easy_vqa()[rng.integers(len(_easy_vqa()))]
        pixels.append(np.asarray(shown.picture().resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
        patches.append(np.full_like(patches[0], -1))
        questions = [Question("easy-vqa", q, (answer,)) for q, answer in shown.questions]
        rng.shuffle(questions)
        asked.append((questions, questions[::-1]))
    for s in seeds[: size // 2] if with_questions else []:
        page = draw_page("train", s)
        pixels.append(np.asarray(page.picture))
        patches.append(patch_labels(page, words))
    batch = Batch(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), np.stack(patches))
    if with_questions:
        _write_questions(batch, asked, tokenizer, rng)
    return batch


@cache
def _easy_vqa() -> list[Asked]:
    return easy_vqa("train")


def _about(scene: Scene, rng: np.random.Generator) -> tuple[list[Question], list[Question]]:
    """Short and long questions about a scene."""
    kinds = {"yes": None, "no": "adversarial"}
    short = [existence(scene, rng, kinds[t]) if t in kinds else TASKS[t](scene, rng) for t in SHORT]
    return [q for q in short if q is not None], ask(scene, rng, LONG)


def _write_questions(batch: Batch, asked, tokenizer, rng: np.random.Generator) -> None:
    """Fills the arrays of a batch with the (short, long) questions of each picture, as many as there are slots."""
    size, slots = len(asked), sum(count for count, _ in SLOTS)
    batch.questions = [np.zeros((size, count, length), np.int64) for count, length in SLOTS]
    batch.at, batch.asked = np.zeros((size, TARGETS), np.int64), np.zeros((size, TARGETS), np.int64)
    batch.target, batch.tasks = np.full((size, TARGETS), -100, np.int64), np.full((size, slots), -1, np.int64)
    assistant = tokenizer.convert_tokens_to_ids(ASSISTANT)
    for b, (short, long) in enumerate(asked):
        texts = []
        for q in (*short, *long):
            said = q.question.capitalize() if rng.random() < 0.3 else q.question
            texts.append(f"\n{said} {ASSISTANT} {q.answers[0]}{EOS}")
        ids = tokenizer(texts, add_special_tokens=False).input_ids
        used, slot, start = 0, 0, 0
        for g, (pool, base, (count, length)) in enumerate(
            zip((short, long), (0, len(short)), SLOTS, strict=True)  # the two pools of questions fill the two groups
        ):
            fitting = [i for i in range(len(pool)) if len(ids[base + i]) <= length][:count]
            for place, i in enumerate(fitting):
                row = ids[base + i]
                batch.questions[g][b, place, : len(row)] = row
                batch.tasks[b, slot + place] = TASK_NAMES.index(pool[i].task)
                begin = row.index(assistant)
                wanted = len(row) - 1 - begin
                if used + wanted > TARGETS:
                    batch.tasks[b, slot + place] = -1
                    continue
                where = slice(used, used + wanted)
                batch.at[b, where] = start + place * length + np.arange(begin, len(row) - 1)
                batch.target[b, where] = row[begin + 1 :]
                batch.asked[b, where] = slot + place
                used += wanted
            slot, start = slot + count, start + count * length


def batches(tokenizer, seed: int, start: int, stop: int, size: int, simple: int, with_questions: bool, workers: int):
    """Yields batches start .. stop - 1 in order, drawn ahead by `workers` processes (0: drawn here).

    Batches before number `simple` hold at most three things.
    """
    plan = [(seed, k, size, 3 if k < simple else 6, with_questions) for k in range(start, stop)]
    if workers == 0:
        for job in plan:
            yield draw_batch(tokenizer, *job)
        return
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(maxsize=6) for _ in range(workers)]
    drawers = []
    for w, queue in enumerate(queues):
        drawers.append(context.Process(target=_draw_all, args=(queue, tokenizer, plan[w::workers]), daemon=True))
        drawers[-1].start()
    for i in range(len(plan)):
        yield _next(queues[i % workers], drawers[i % workers])


def _next(queue, drawer) -> Batch:
    """The next batch of a drawing process; RuntimeError instead of waiting for ever if it died."""
    while True:
        alive = drawer.is_alive()  # asked before the queue, so that what a finished process left is still taken
        try:
            return queue.get(timeout=5)
        except Empty:
            if not alive:
                raise RuntimeError("a process that draws scenes died; its error is above") from None


def _draw_all(queue, tokenizer, plan) -> None:
    for job in plan:
        queue.put(draw_batch(tokenizer, *job))
