"""Proposals where one objective is known exactly before anything is tried."""

STARTS = 3
"""Points spread over the cost before losses are asked."""
