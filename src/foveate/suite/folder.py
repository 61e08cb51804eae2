"""A user's own pictures with questions: a folder with a JSONL file, or one that Hugging Face `datasets` wrote.

A line of the JSONL file, or a row of the data set, has

    image       a picture file, relative to the folder (in a data set: a picture)
    question    what is asked about it
    answers     all that is right, or what several people said (or `answer`, a single one; for a choice its letter)
    task        optional: the name that results are reported under
    metric      optional: yes-no, exact, vqa, choice, anls or cider; else that of the suite's task of the same name, or
                the metric called like the task, or yes-no where all answers are yes or no, or vqa
    kind        optional: for yes/no questions the kind of negatives (POPE's random, popular, adversarial)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.ask import read_picture
from foveate.suite.metrics import METRICS
from foveate.suite.tasks import METRICS_OF, Sample


def read(folder: Path, limit: int, seed: int) -> list[Sample]:
    """`limit` questions of each task in a folder, drawn by the seed; all where there are no more.

    Tasks are called after the folder: `pictures/vqa`. Raises ValueError for what is no such folder or a line that
    lacks something, ImportError if a data set is given and `datasets` is not installed.
    """
    rows = list(dataset_rows(folder) if (folder / "dataset_info.json").exists() else jsonl_rows(folder))
    by_task: dict[str, list[Sample]] = {}
    for row, metrics, task in with_metrics(rows):
        samples = by_task.setdefault(f"{folder.name}/{task}", [])
        samples.append(
            Sample(
                task=f"{folder.name}/{task}",
                number=len(samples),
                question=row["question"],
                answers=row["answers"],
                metrics=metrics,
                kind=row["kind"],
                picture=row["picture"],
            )
        )
    return [sample for samples in by_task.values() for sample in some(samples, limit, seed)]


def some(samples: list[Sample], limit: int, seed: int) -> list[Sample]:
    """`limit` of the samples, drawn by the seed, in their order."""
    if len(samples) <= limit:
        return samples
    drawn = np.random.default_rng(seed).permutation(len(samples))[:limit]
    return [samples[i] for i in sorted(drawn)]


def jsonl_rows(folder: Path) -> Iterator[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    if len(files) != 1:
        raise ValueError(f"{folder} needs one JSONL file with image, question, answers, task; it has {len(files)}")
    try:
        text = files[0].read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{files[0]} is no UTF-8 text: save it as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{files[0]} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # also a number of 5,000 digits, or lists 5,000 deep
            raise ValueError(f"{place} is no JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            raise ValueError(f"{place} lacks image, the name of a picture file")
        yield {**checked(row, place), "picture": partial(read_picture, inside(folder, row["image"], place))}


def inside(folder: Path, name: str, place: str) -> Path:
    """The file called `name` in the folder; ValueError for a path that leads out of it."""
    if "\0" in name or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place}: the image {name!r} is not in the folder; put the picture there")
    return folder / name


def dataset_rows(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_from_disk  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError(f"{folder} is a Hugging Face data set: pip install datasets") from None
    data: Any = load_from_disk(str(folder))
    if isinstance(data, dict):
        raise ValueError(f"{folder} holds several splits: give the folder of one, {', '.join(data)}")
    if "image" not in data.column_names:
        raise ValueError(f"{folder} lacks the column image")
    for number, row in enumerate(data.remove_columns("image")):
        yield {**checked(row, f"{folder} row {number}"), "picture": partial(picture_of, data, number)}


def picture_of(data: Any, number: int) -> Image.Image:
    return data[number]["image"].convert("RGB")


def checked(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The fields of a row but its picture. Raises ValueError naming the place and what is missing there."""
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str | int | float) else answers
    if not isinstance(row.get("question"), str):
        raise ValueError(f"{place} lacks question")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str | int | float) for a in answers):
        raise ValueError(f"{place} lacks answers, a list of right ones, or answer")
    for field in ("task", "kind", "metric"):
        if row.get(field) is not None and not isinstance(row[field], str):
            raise ValueError(f"{place}: {field} is no text")
    if (metric := row.get("metric")) is not None and metric not in METRICS:
        raise ValueError(f'{place}: there is no metric "{metric}"; there are {", ".join(METRICS)}')
    return {
        "question": row["question"],
        "answers": tuple(map(str, answers)),
        "task": row.get("task"),
        "metric": metric,
        "kind": row.get("kind"),
    }


def with_metrics(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], tuple[str, ...], str]]:
    """Rows with the metrics and the name of their task; a task has the same metrics in all its rows."""
    rows, found = list(rows), {}
    for row in rows:
        found.setdefault(row["task"], []).append(row)
    metrics = {task: metrics_of(task, of_task) for task, of_task in found.items()}
    for row in rows:
        name = row["task"] or metrics[row["task"]][0]
        answers = row["answers"]
        if metrics[row["task"]][0] == "yes-no":
            answers = tuple(answer.strip().lower() for answer in answers)
            if answers[0] not in ("yes", "no"):
                raise ValueError(f'task {name} is scored as yes or no, but an answer is "{answers[0]}"')
        yield {**row, "answers": answers}, metrics[row["task"]], name


def metrics_of(task: str | None, rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    named = {row["metric"] for row in rows} - {None}
    if len(named) > 1:
        raise ValueError(f"task {task} has several metrics: {', '.join(sorted(named))}")
    if named:
        return (named.pop(),)
    if task in METRICS_OF:
        return METRICS_OF[task]
    if task in METRICS:
        return (task,)
    short = all(answer.strip().lower() in ("yes", "no") for row in rows for answer in row["answers"])
    return ("yes-no",) if short else ("vqa",)
