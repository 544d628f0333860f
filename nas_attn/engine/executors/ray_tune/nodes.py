"""Nodes of a Ray cluster: which there are, whether they answer, and what they lack."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas_attn.errors import SearchError, UsageError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
MOST_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
WATCH_SECONDS = 2.0
"""How often nodes are counted and the cluster is looked at."""
LOOK_SECONDS = 60.0
"""How long nodes have to say whether they have the data."""


def live_nodes() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def check_data(folder: Path) -> None:
    """A node without the data would draw trial after trial, and fail them all at once.

    Raises:
        SearchError: there is such a node.
    """
    look: Any = ray.remote(num_cpus=0)(Path.is_dir)
    asked = {}
    for node in live_nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[look.options(scheduling_strategy=there).remote(folder)] = node["NodeManagerHostname"]
    lacking = set()
    for answer in ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)[0]:
        try:
            if not ray.get(answer):
                lacking.add(asked[answer])
        except ray.exceptions.RayError:
            continue  # the node has died meanwhile
    if lacking:
        raise SearchError(
            f"no data folder {folder} on the Ray node(s) {', '.join(sorted(lacking))}: share the "
            "folder with every node, or set execution.transfer to object_store"
        )


def check_socket_folder(environment: Mapping[str, str]) -> None:
    """See that Ray can keep its sockets under the temporary folder.

    Raises:
        UsageError: the path of a socket would be longer than the system allows.
    """
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in environment else "TMPDIR"
    folder = environment.get(variable, "/tmp")  # as Ray has it
    session = f"session_YYYY-MM-DD_HH-MM-SS_micros_{os.getpid()}"
    length = len(os.fsencode(f"{folder}/ray/{session}/sockets/plasma_store"))
    if length > MOST_SOCKET_BYTES:
        most = len(os.fsencode(folder)) - (length - MOST_SOCKET_BYTES)
        raise UsageError(
            f"Ray keeps sockets under {variable}, whose path may have at most {most} bytes for "
            f"that, but is {folder}: set RAY_TMPDIR to a short folder, such as /tmp"
        )


def watch_cluster(address: str, over: threading.Event) -> None:
    """Say so when the cluster goes away, as Ray ends this process in words of its own."""
    answers = True
    while not over.wait(WATCH_SECONDS):
        try:
            _connect(address)
        except OSError as error:
            if answers:
                logger.error(
                    "the Ray cluster at %s does not answer: %s; if it stays away, this driver "
                    "ends; run the same command again to resume once there is a cluster",
                    address,
                    error,
                )
            answers = False
        else:
            answers = True


def check_reachable(address: str) -> None:
    """Ray itself waits for minutes on an address where nothing listens.

    Raises:
        SearchError: nothing does, or it is one of Ray's client.
    """
    if address.startswith("ray://"):
        # There Tune would run in another process than the loop.
        raise SearchError(
            f"{address} is an address of Ray's client, from which no search can run: start it on a "
            "machine of the cluster, with --address auto or HOST:6379"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # such as "auto"
    try:
        _connect(f"{host}:{port}")
    except OSError as error:
        raise SearchError(f"nothing answers at the Ray address {address}: {error}") from None


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
