"""A policy: which method a model is pruned with, as a small JSON file that also says how that was found."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foveate.files import write
from foveate.policy.encoding import check_fields, decoded, encoded, mapping, number, parse, text
from foveate.policy.entry import Entry, Figure, Guard, Measured, Rule
from foveate.pruning.families import unwrap

SCHEMA = 1
FILE = "foveate_policy.json"  # next to a checkpoint
LARGEST_FILE = 2**20  # bytes
SIGNALS = ("margin", "entropy")
# what a config holds besides the model's shape: it differs between two copies of one model
NOT_THE_MODEL = {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "architectures"}


@dataclass(frozen=True)
class Model:
    """Which model a policy is for: `name` for people; class and config hash, and signs of its weights, to check."""

    name: str
    kind: str
    config: str
    weights: str | None

    @classmethod
    def of(cls, model: Any, name: str = "") -> Model:
        model = unwrap(model)
        kind = type(model).__name__
        return cls(name or str(model.config._name_or_path) or kind, kind, config_hash(model.config), signs_of(model))


@dataclass(frozen=True)
class Policy:
    """Entries for kinds of prompt, and the model that they were found on.

    Attributes:
        entries: by the name of the kind; "default" serves what no rule fits.
        chosen: the only kind that is used, if `of` or `asked` has chosen it.
        versions: of foveate and transformers that it was made with.
    """

    model: Model
    entries: Mapping[str, Entry]
    versions: Mapping[str, str] = field(default_factory=lambda: {p: version(p) for p in ("foveate", "transformers")})
    chosen: str = "default"

    def __post_init__(self) -> None:
        if "default" not in self.entries:
            raise ValueError('a policy needs an entry called "default"')

    @property
    def entry(self) -> Entry:
        """The entry in force."""
        return self.entries[self.chosen]

    def of(self, kind: str) -> Policy:
        """The same policy, for prompts of this kind.

        Raises:
            ValueError: there is no entry for it.
        """
        if kind not in self.entries:
            raise ValueError(f"the policy has no entry {kind!r}; it has {', '.join(self.entries)}")
        return replace(self, chosen=kind)

    def asked(self, question: str) -> Policy:
        """The same policy, for this question: the first entry whose rule fits its text, else the default."""
        fitting = (kind for kind, entry in self.entries.items() if entry.rule and entry.rule.fits(question))
        return self.of(next(fitting, "default"))

    def check(self, model: Any) -> None:
        """Refuse a model other than the one that the policy was found on.

        Raises:
            ValueError: it is another one, with what differs.
        """
        found = Model.of(model)
        differ = [
            what
            for what, mine, other in (
                ("class", self.model.kind, found.kind),
                ("config", self.model.config, found.config),
                ("weights", self.model.weights, found.weights),
            )
            if mine != other and None not in (mine, other)
        ]
        if differ:
            raise ValueError(
                f"this policy was made for {self.model.name!r} ({self.model.kind}), and this {found.kind} has another "
                f"{' and '.join(differ)}: make one for it with `foveate calibrate`"
            )

    def save(self, path: str | Path) -> None:
        """Write the policy to a file, as a whole or not at all.

        Raises:
            ValueError: it holds what `load` would refuse, such as a figure that is no number.
        """
        path, source = Path(path), json.dumps(as_json(self), indent=1) + "\n"
        try:
            from_json(parse(source))
        except ValueError as error:
            raise ValueError(f"this policy could not be read again, and is not written to {path}: {error}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, source)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy next to a checkpoint."""
        self.save(Path(folder) / FILE)

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file.

        Raises:
            ValueError: there is none, or it is not a whole policy of this schema; what is unknown in it is refused.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                source = file.read(LARGEST_FILE + 1)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        try:
            if len(source) > LARGEST_FILE:
                raise ValueError("it is larger than a policy can be")
            return from_json(parse(source.decode()))
        except ValueError as error:
            raise ValueError(f"{path} is no policy file: {error}") from None

    @classmethod
    def from_pretrained(cls, place: str | Path) -> Policy:
        """Read the policy next to a checkpoint: a folder or a hub id.

        Raises:
            ValueError: as `load`. OSError: the hub has no such file.
        """
        if Path(place).is_dir():
            return cls.load(Path(place) / FILE)
        from transformers.utils.hub import cached_file

        found = cached_file(str(place), FILE)
        return cls.load(str(found))


def config_hash(config: Any) -> str:
    """A hash of all that a config says of the model's shape, the same for every copy and dtype of the model."""

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(x) for key, x in value.items() if key not in NOT_THE_MODEL}
        return [shape(x) for x in value] if isinstance(value, list | tuple) else value

    whole = json.dumps(shape(config.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(whole.encode()).hexdigest()


def signs_of(model: Any) -> str | None:
    """A checksum over the signs of the first weights of every parameter, the same in every dtype.

    None if some are away. Fine-tuned, merged or quantised weights are others, and so is their policy.
    """
    value = 0
    for weight in model.parameters():
        if weight.is_meta:
            return None
        value = zlib.crc32((weight.detach().flatten()[:256] > 0).cpu().numpy().tobytes(), value)
    return f"{value:08x}"


def as_json(policy: Policy) -> dict[str, Any]:
    entries = {kind: entry_json(entry) for kind, entry in policy.entries.items()}
    return {"schema": SCHEMA, "model": asdict(policy.model), "versions": dict(policy.versions), "entries": entries}


def entry_json(entry: Entry) -> dict[str, Any]:
    told = {"method": encoded(entry.method), "budget": dict(entry.budget), "data": dict(entry.data)}
    for name in ("rule", "measured", "guard"):
        if (note := getattr(entry, name)) is not None:
            told[name] = {field: value for field, value in asdict(note).items() if value is not None}
    return told


def from_json(data: Any) -> Policy:
    """The policy that `as_json` wrote. Raises ValueError for anything else."""
    data = mapping(data, "the file")
    if data.get("schema") != SCHEMA or isinstance(data.get("schema"), bool):
        raise ValueError(f"its schema is {json.dumps(data.get('schema'))[:60]}, and this foveate reads {SCHEMA}")
    whole(data, ("schema", "model", "versions", "entries"), (), "the file")
    model = mapping(data["model"], "model")
    whole(model, ("name", "kind", "config", "weights"), (), "model")
    words = {name: text(model[name], f"model.{name}") for name in ("name", "kind", "config")}
    weights = None if model["weights"] is None else text(model["weights"], "model.weights")
    versions = {text(k, "versions"): text(v, f"versions.{k}") for k, v in mapping(data["versions"], "versions").items()}
    entries = mapping(data["entries"], "entries")
    found = {text(kind, "entries"): entry_of(entry, f"entries.{kind}") for kind, entry in entries.items()}
    return Policy(Model(**words, weights=weights), found, versions)


def entry_of(data: Any, place: str) -> Entry:
    data = mapping(data, place)
    whole(data, ("method",), ("rule", "budget", "data", "measured", "guard"), place)
    budget = mapping(data.get("budget", {}), f"{place}.budget")
    notes = mapping(data.get("data", {}), f"{place}.data")
    return Entry(
        method=decoded(data["method"], f"{place}.method"),
        rule=None if "rule" not in data else rule_of(data["rule"], f"{place}.rule"),
        budget={text(k, f"{place}.budget"): number(v, f"{place}.budget.{k}") for k, v in budget.items()},
        data={text(k, f"{place}.data"): note(v, f"{place}.data.{k}") for k, v in notes.items()},
        measured=None if "measured" not in data else measured_of(data["measured"], f"{place}.measured"),
        guard=None if "guard" not in data else guard_of(data["guard"], f"{place}.guard"),
    )


def rule_of(data: Any, place: str) -> Rule:
    data = mapping(data, place)
    whole(data, (), ("first", "words"), place)
    found = {}
    for name, words in data.items():
        if not isinstance(words, list):
            raise ValueError(f"{place}.{name} has to be a list of words")
        found[name] = tuple(text(word, f"{place}.{name}") for word in words)
    return Rule(**found)


def measured_of(data: Any, place: str) -> Measured:
    data = mapping(data, place)
    figures = ("flops", "whole", "agreement", "kl")
    whole(data, ("samples", *figures), ("speed",), place)
    found = {name: figure_of(data[name], f"{place}.{name}") for name in (*figures, "speed") if name in data}
    return Measured(samples=int(number(data["samples"], f"{place}.samples", 0)), **found)


def figure_of(data: Any, place: str) -> Figure:
    data = mapping(data, place)
    whole(data, ("mean", "low", "high"), (), place)
    return Figure(**{name: number(value, f"{place}.{name}") for name, value in data.items()})


def guard_of(data: Any, place: str) -> Guard:
    data = mapping(data, place)
    whole(data, ("signal", "threshold", "alpha", "confidence", "samples", "rerun"), ("fresh",), place)
    if data["signal"] not in SIGNALS:
        raise ValueError(f"{place}.signal has to be one of {', '.join(SIGNALS)}")
    shares = {name: number(data[name], f"{place}.{name}", 0, 1) for name in ("alpha", "confidence", "rerun")}
    threshold, samples = number(data["threshold"], f"{place}.threshold"), number(data["samples"], f"{place}.samples", 0)
    fresh = int(number(data["fresh"], f"{place}.fresh", 1)) if "fresh" in data else None
    return Guard(signal=data["signal"], threshold=threshold, samples=int(samples), fresh=fresh, **shares)


def note(data: Any, place: str) -> Any:
    return text(data, place) if isinstance(data, str) else number(data, place)


def whole(data: Mapping[str, Any], needed: Sequence[str], possible: Sequence[str], place: str) -> None:
    """Refuse fields that are missing or unknown."""
    check_fields(data, (*needed, *possible), place)
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"{place} lacks {', '.join(missing)}")
