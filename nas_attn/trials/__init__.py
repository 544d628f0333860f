"""Run one trial: processes, one after the other, and what their files say."""
