"""Proposals where one objective is known exactly before anything is tried."""
