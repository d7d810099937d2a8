"""A cluster's dashboard, through which jobs are submitted, followed and stopped."""

import contextlib
import os
from collections.abc import Generator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from adadecode.errors import UsageError
from adadecode.printable import has_password, on_one_line, without_password
from ray_jobs.cluster import TOKEN_REMEDY

ANSWER_S = 60.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # in the order in which Ray's own commands ask them
SILENCES = (OSError, RuntimeError, ValueError, SystemExit, AuthenticationError, RayError, requests.RequestException)


class PatientClient(JobSubmissionClient):
    """Ray's client with an end to its patience: a request of which nothing was heard for ANSWER_S raises an OSError.

    Ray's own waits for ever where a link was cut without a sign.
    """

    def _do_request(self, method: str, endpoint: str, **given: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=ANSWER_S, **given)

    def log_session(self) -> aiohttp.ClientSession:
        """A session with the token, for requests whose answers come in pieces."""
        return aiohttp.ClientSession(headers=self._headers, cookies=self._cookies)


def open_dashboard(address: str | None) -> tuple[PatientClient, str]:
    """A client of the dashboard at `address`, and that address; where it is None, what Ray's variables name.

    An address that is given wins over the variables, where Ray's own client heeds them alone. Raises UsageError.
    """
    name, found = ("--address", address) if address is not None else address_of_environment()
    if has_password(found):
        raise UsageError(
            f"{name} {on_one_line(repr(without_password(found)))}: leave its user name and password out, as commands with "
            f"it are shown; where the dashboard asks for a token {TOKEN_REMEDY}"
        )
    if address is not None and not is_web_address(address):
        raise UsageError(f"--address {on_one_line(repr(address))}: give the dashboard's, such as http://HOST:8265")
    try:
        if not is_web_address(found):
            found = get_address_for_submission_client(None)  # asks the head of a cluster where its dashboard is
        with without(ADDRESS_VARIABLES):
            return PatientClient(found), found
    except SILENCES as error:
        raise UsageError(
            f"{name} {on_one_line(repr(found))}: no Ray dashboard answers there; give http://HOST:8265 of a running head, "
            f"and where it asks for a token {TOKEN_REMEDY} ({on_one_line(error)})"
        ) from error


def address_of_environment() -> tuple[str, str]:
    """The variable that names a cluster, and what it says; `--address` and this machine's usual one without any."""
    given = ((name, os.environ[name]) for name in ADDRESS_VARIABLES if os.environ.get(name))
    return next(given, ("--address", DEFAULT_ADDRESS))


@contextlib.contextmanager
def without(names: tuple[str, ...]) -> Generator[None]:
    """Takes the variables `names` out of the environment while it lasts."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def is_web_address(address: str) -> bool:
    """Whether `address` is that of a web server: http(s)://HOST, with a port from 1 to 65535 where it has one."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or brackets that do not close
        return False


def is_unknown_job(error: Exception) -> bool:
    """Whether the dashboard answered that there is no such job."""
    return f"status code {HTTPStatus.NOT_FOUND}" in str(error)
