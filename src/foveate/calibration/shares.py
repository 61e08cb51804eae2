"""Budgets that follow the picture: shares of the score in place of fractions, calibrated to cost the same."""

from __future__ import annotations

from dataclasses import replace

from foveate.calibration.search import Search
from foveate.calibration.trials import share, solve
from foveate.methods import Method, Share
from foveate.policy.schedule import Schedule


def adaptive_of(search: Search) -> list[Method]:
    """The best fixed method with shares of the score in place of its fractions, at the same average cost."""
    for candidate in search.fitting[:3]:
        try:
            return [with_shares(candidate.method, candidate.cost, search)]
        except ValueError:
            continue
    return []


def with_shares(method: Method, target: float, search: Search) -> Method:
    """A method whose every fraction becomes the share p of the score, p such that the average cost is at most `target`.

    The average is that of the search's samples. Raises ValueError for a method without fractions, or where no p fits.
    """
    if not fractions_of(method):
        raise ValueError(f"{method.name} keeps no fraction of the tokens")
    dense = search.trials.run(None)
    return solve(
        lambda t: shared(method, max(1e-4, round(1 - (1 - t) ** 4, 6))),  # scores are uneven: most p are close to 1
        target,
        lambda found: share(search.trials.run(found), dense, search.budget.kind),
        steps=8,
    )


def fractions_of(method: Method) -> list[str]:
    """The fields of a method that hold fractions of its scored tokens; for a schedule those of its parts."""
    if isinstance(method, Schedule):
        return [field for part in method.parts for field in fractions_of(part)]
    named = [field for field, value in vars(method).items() if field.startswith("keep") and isinstance(value, float)]
    return named if method.reads else []


def shared(method: Method, p: float) -> Method:
    if isinstance(method, Schedule):
        return Schedule(tuple(shared(part, p) for part in method.parts))
    return replace(method, **{field: Share(p) for field in fractions_of(method)})
