"""Policies: which method prunes a model, found by calibration, with what it costs and what it changes."""

from __future__ import annotations

from foveate.policy.entry import Entry, Figure, Guard, Measured, Rule
from foveate.policy.policy import Model, Policy
from foveate.policy.schedule import Cut, Dense, Schedule

__all__ = ["Cut", "Dense", "Entry", "Figure", "Guard", "Measured", "Model", "Policy", "Rule", "Schedule"]
