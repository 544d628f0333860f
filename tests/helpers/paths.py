"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

LONGEST = (
    "plugin/test_commands.py",
    "test_end_to_end_warm_start.py",
    "test_end_to_end_sensitivity.py",
    "test_cli.py",
    "engine/test_two_drivers.py",
    "test_stress.py",
    "engine/test_ray_cluster.py",
    "test_end_to_end_objectives.py",
    "test_export.py",
    "plugin/test_votes.py",
)
"""Files that take minutes come first, so that none keeps one of two cores waiting at the end."""
