"""What a node of a cluster says of itself: versions, clock, token file, and whether it sees the driver's run folder.

It runs on nodes that are only asked, so it imports neither torch nor a model.
"""

import importlib.metadata
import os
import platform
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import _raylet

from adadecode.doctor.run_folder import answer
from adadecode.provenance import code_hash, gpu_names

OTHERS = stat.S_IRWXG | stat.S_IRWXO


class NodeFacts(NamedTuple):
    """What one process says of where it runs. `folder` is why it cannot use the run folder, None where it can."""

    host: str
    ray: str
    python: str
    torch: str
    code: str  # a hash of what decodes
    clock: float  # seconds since the epoch
    asks_for_token: bool
    open_token: str | None  # the path of a token file that others may read
    folder: str | None = None
    gpus: tuple[str, ...] = ()  # their names, which tell more apart than labels of Ray's do


def node_facts() -> NodeFacts:
    """The facts of this process; its clock is read last."""
    internals: Any = _raylet  # no public call tells
    return NodeFacts(
        host=socket.gethostname(),
        ray=ray.__version__,
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
        code=code_hash(),
        asks_for_token=internals.get_authentication_mode() == internals.AuthenticationMode.TOKEN,
        open_token=open_token(os.environ),
        gpus=gpu_names(),
        clock=time.time(),
    )


def probe(location: str, left: str, name: str) -> NodeFacts:
    """The facts of this process, which answers the file `left` in the run folder at `location` with one called `name`."""
    refused = answer(location, left, name)
    return node_facts()._replace(folder=refused)


def open_token(environment: Mapping[str, str]) -> str | None:
    """The file with the token that Ray takes under `environment`, when others than its owner may read it; else None.

    Ray up to 2.60.0 writes it with the mode that the umask leaves, readable for all.
    """
    if environment.get("RAY_AUTH_MODE") == "disabled" or environment.get("RAY_AUTH_TOKEN"):
        return None
    path = environment.get("RAY_AUTH_TOKEN_PATH") or str(Path("~/.ray/auth_token").expanduser())
    try:
        return path if Path(path).stat().st_mode & OTHERS else None
    except OSError:
        return None
