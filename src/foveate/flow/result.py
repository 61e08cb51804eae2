"""The result of an analysis: named arrays with one row per sample, and what can be said about their means."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.files import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foveate.flow.samples import Batch

Means = Mapping[str, np.ndarray]
Statistic = str | Callable[[Means], np.ndarray]  # a value's name, or a function of the means of all values


@dataclass(frozen=True, eq=False)
class Result:
    """What an analysis found for each sample.

    Attributes:
        name: of the analysis.
        values: name -> array (samples, *axes) of floats; nan where a sample has no such value.
        axes: name of a value -> the names of its axes after the samples, such as ("layer", "group").
        labels: name of an axis -> its labels, such as layer numbers or group names.
        tasks: each sample's task.
        settings: what the analysis was asked for.
    """

    name: str
    values: dict[str, np.ndarray]
    axes: dict[str, tuple[str, ...]]
    labels: dict[str, list[Any]]
    tasks: list[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def mean(self, what: Statistic) -> np.ndarray:
        """The mean of a value over samples, or a function of such means: its axes without the samples."""
        return self._weighted(what, np.ones((1, len(self))))[0]

    def interval(self, what: Statistic, level: float = 0.95, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound of the mean (or of a function of means): percentile bootstrap over samples."""
        drawn = self.draws(what, draws)
        tail = 50 * (1 - level)
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a value that no sample has is nan, which is said enough
            return np.nanpercentile(drawn, tail, axis=0), np.nanpercentile(drawn, 100 - tail, axis=0)

    def draws(self, what: Statistic, draws: int = 1000) -> np.ndarray:
        """The statistic in `draws` bootstrap resamples of the samples: (draws, *axes). The seed is fixed."""
        count = len(self)
        weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=draws)
        return self._weighted(what, weights)

    def _weighted(self, what: Statistic, weights: np.ndarray) -> np.ndarray:
        """A statistic of the means under sample weights (draws, samples); nan is no sample."""

        def mean(value: np.ndarray) -> np.ndarray:
            known = np.isfinite(value)
            total = np.tensordot(weights, np.where(known, value, 0.0), axes=1)
            count = np.tensordot(weights, known.astype(float), axes=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                return total / count

        if isinstance(what, str):
            return mean(self.values[what])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(what({name: mean(value) for name, value in self.values.items()}))

    def of(self, tasks: str | Iterable[str]) -> Result:
        """The samples of one task, or of several."""
        chosen = {tasks} if isinstance(tasks, str) else set(tasks)
        rows = [i for i, task in enumerate(self.tasks) if task in chosen]
        values = {name: value[rows] for name, value in self.values.items()}
        return replace(self, values=values, tasks=[self.tasks[i] for i in rows])

    @staticmethod
    def join(parts: Sequence[Result]) -> Result:
        """The samples of several runs of one analysis.

        Raises:
            ValueError: the parts are of different analyses, models or settings.
        """
        first = parts[0]
        for part in parts:
            if (part.name, part.labels, part.settings) != (first.name, first.labels, first.settings):
                raise ValueError(f"parts of {first.name} differ in what was analysed: join runs of one analysis only")
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in first.values}
        return replace(first, values=values, tasks=[task for part in parts for task in part.tasks])

    def save(self, path: str | Path) -> None:
        """Write everything to one .npz file, arrays and a JSON header."""
        header = {key: getattr(self, key) for key in ("name", "axes", "labels", "tasks", "settings")}
        arrays: dict[str, Any] = {"__header__": np.array(json.dumps(header)), **self.values}

        def make(half: Path) -> None:
            with open(half, "wb") as file:
                np.savez_compressed(file, **arrays)

        save(Path(path), make)

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """What `save` wrote.

        Raises:
            ValueError: it is no such file, or not a whole one. OSError: it is not there.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["__header__"]))
                values = {name: file[name] for name in file.files if name != "__header__"}
            header["axes"] = {name: tuple(axes) for name, axes in header["axes"].items()}
            return cls(values=values, **header)
        except FileNotFoundError:
            raise
        except Exception as error:  # numpy, zipfile and json raise nearly anything on a broken file
            raise ValueError(
                f"{path} is no whole result of an analysis: delete it and run the analysis again"
            ) from error

    def plot(self, *names: str) -> Figure:
        """Means with 95 % intervals over layers, one panel per value (all that have a layer axis, if none is named)."""
        from foveate.flow.plot import plot_result

        return plot_result(self, names)


def collect(
    name: str,
    samples: Iterable[Batch],
    of_batch: Callable[[Batch], Mapping[str, Any]],
    axes: Mapping[str, tuple[str, ...]],
    labels: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """The result of an analysis that finds, batch by batch, the values named in `axes`.

    A value is a tensor (B, *axes), or a list of such tensors (or of lists) along the axis after the batch.

    Raises:
        ValueError: there are no samples.
    """
    tasks: list[str] = []
    columns: dict[str, list[np.ndarray]] = {key: [] for key in axes}
    for batch in samples:
        tasks += batch.tasks
        values = of_batch(batch)
        for key in axes:
            columns[key].append(as_array(values[key]))
    if not tasks:
        raise ValueError(f"{name} needs samples: give a list of batches, and a fresh one if it was an iterator")
    values = {key: np.concatenate(arrays) for key, arrays in columns.items()}
    named = {axis: list(entries) for axis, entries in labels.items()}
    return Result(name, values, dict(axes), named, tasks, json.loads(json.dumps(dict(settings or {}))))


def over(names: Iterable[str], *axes: str) -> dict[str, tuple[str, ...]]:
    """The axes of several values that have the same."""
    return dict.fromkeys(names, axes)


def as_array(x: Any) -> np.ndarray:
    """A tensor, or a list of tensors that becomes the second axis, as float64."""
    if isinstance(x, (list, tuple)):
        return np.stack([as_array(part) for part in x], axis=1)
    return np.asarray(x.detach().cpu().double() if hasattr(x, "detach") else x, dtype=np.float64)
