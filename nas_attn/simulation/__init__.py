"""Learning curves instead of trainings, for tests and for measuring searches."""
