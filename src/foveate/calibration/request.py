"""What a calibration is asked to do, and what of it is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.calibration.search import FAMILIES, Candidate
from foveate.flow.withdrawal import ETA

FRONT = (0.25, 0.5, 0.7)  # budgets beside the one asked for, for the picture


@dataclass(frozen=True)
class Request:
    """What a calibration is asked to do.

    Attributes:
        kind, target: of the budget, see `search.Budget`; the kind "speedup" is a dense time over a pruned one.
        max_kl, agreement: constraints on fidelity, or None.
        trials: that Optuna draws for a free schedule; half as many for the other families.
        eta: VTW's own threshold, nats.
        guard: alpha, or None. confidence, fresh: of the bound, see `policy.Guard`.
        by_kind: whether kinds of question get entries of their own.
    """

    model: str
    kind: str
    target: float
    max_kl: float | None = None
    agreement: float | None = None
    families: tuple[str, ...] = FAMILIES
    trials: int = 32
    eta: float = ETA
    guard: float | None = None
    confidence: float = 0.95
    fresh: int | None = None
    by_kind: bool = True
    front: tuple[float, ...] = FRONT
    batch: int = 16
    seed: int = 0
    data: str = "suite"

    @property
    def constrained(self) -> bool:
        return self.max_kl is not None or self.agreement is not None

    @property
    def budget(self) -> dict[str, float]:
        """What was asked for, as the policy notes it."""
        asked = {self.kind: self.target, "max_kl": self.max_kl, "agreement": self.agreement}
        return {name: value for name, value in asked.items() if value is not None}

    def meets(self, found: Candidate) -> bool:
        """Whether the constraints are fulfilled."""
        kl, agreement = np.inf if self.max_kl is None else self.max_kl, self.agreement or 0.0
        return found.kl <= kl and found.agreement >= agreement


def one_budget(flops: float | None, speedup: float | None, keep: float | None, constrained: bool) -> tuple[str, float]:
    """The kind and the target of the one budget that was given; with a constraint it may be left out.

    Raises ValueError for none, for several, and for a share that is none.
    """
    given = {
        name: value for name, value in (("flops", flops), ("speedup", speedup), ("keep", keep)) if value is not None
    }
    if not given and constrained:
        return "flops", 1.0
    if len(given) != 1:
        raise ValueError("give one budget: --flops 0.35, --speedup 2 or --keep 0.2; or a constraint, --agreement 0.99")
    ((kind, target),) = given.items()
    if kind == "speedup" and not 1 < target < 1000:
        raise ValueError(f"--speedup {target:g} is no speedup: give more than 1")
    if kind != "speedup" and not 0 < target <= 1:
        raise ValueError(f"--{kind} {target:g} is no share of the dense model's: give more than 0 and at most 1")
    return kind, target


def families_of(names: Sequence[str]) -> tuple[str, ...]:
    """The families to search, cheap ones first: a free schedule begins with what they found."""
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ValueError(f"there is no method {unknown[0]!r} to calibrate; there are {', '.join(FAMILIES)}")
    if not names:
        raise ValueError(f"give --methods, some of {', '.join(FAMILIES)}")
    return tuple(family for family in FAMILIES if family in names)


def check(request: Request) -> None:
    """Refuse constraints and bounds that are none, before anything is loaded."""
    for name, value, most in (
        ("--agreement", request.agreement, 1.0),
        ("--guard", request.guard, 0.5),
        ("--confidence", request.confidence, 1.0),
        ("--max-kl", request.max_kl, np.inf),
        ("--eta", request.eta, np.inf),
    ):
        if value is not None and not (0 < value <= most and value < np.inf):
            raise ValueError(
                f"{name} {value:g} is out of range: give more than 0" + f" and at most {most:g}" * (most < np.inf)
            )
    if request.confidence == 1:
        raise ValueError("--confidence 1 is certainty, which no number of samples gives: give less")
