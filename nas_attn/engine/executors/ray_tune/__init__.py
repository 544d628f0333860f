"""Trials under Ray Tune, on this machine or on a cluster.

Tune only executes. Proposals come from the loop through a searcher of our own, the loop says
through a scheduler of our own which trial stops, and a search that was interrupted goes on from its
record, not from Tune's files.

Ray reads some settings from the environment as it is imported, and takes them in no other way. They
are set here, since a package is imported before any of its modules. Without them Ray would send
usage statistics home, print tables into ours, keep Ctrl-C to itself, refuse a last report that is a
result and no validation, and write logs of its own for every trial.
"""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
