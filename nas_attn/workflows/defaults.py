"""How much workflows do unless told otherwise, which commands show in their help."""

from __future__ import annotations

SEEDS = 5
"""Trainings of each point that is confirmed."""
CHECKS, POINTS = 40, 8
"""Plans that test predictions, and that are recommended."""
LEAST_MEASURED, PART_MEASURED = 8, 1 / 12
"""Single changes that are measured beside scores: so many, or that part of all if it is more."""
