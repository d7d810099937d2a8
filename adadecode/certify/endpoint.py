"""One OpenAI-compatible server: where it is, what it serves, and one streamed output of it."""

import base64
import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from adadecode.certify.apis import COMPLETIONS
from adadecode.certify.events import payloads
from adadecode.certify.failures import (
    BAD_ANSWER,
    RATE_LIMITED,
    REFUSED,
    SERVER_ERROR,
    TIMED_OUT,
    UNREACHABLE,
    ServerError,
)
from adadecode.certify.request import Request
from adadecode.certify.stream import Completion, Reader
from adadecode.errors import UsageError
from adadecode.files import from_json
from adadecode.printable import on_one_line

CONNECT_S = 10.0
MAX_BODY_LEN = 2**20  # bytes of an answer that is no stream
HIDDEN = "HIDDEN"
NOT_THERE = (404, 405, 501)  # statuses of a path that a server has not


@dataclass(frozen=True)
class Address:
    """Where a server is: its URL up to `/v1`, without the user name and password that were before the host."""

    flag: str
    url: str
    login: tuple[str, str] | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.flag} {self.url}"


def address_of(flag: str, text: str) -> Address:
    """The address in `text`, the URL given for `flag`; raises UsageError, which shows no password, where it is none."""
    try:
        url = httpx2.URL(text.strip())
        is_one = url.scheme in ("http", "https") and bool(url.host) and not (url.query or url.fragment)
    except httpx2.InvalidURL:
        url, is_one = httpx2.URL(), False
    if not is_one:
        scheme, found, rest = text.strip().partition("://")
        shown = f"{scheme}{found}{rest}".rpartition("@")[2].partition("?")[0]
        raise UsageError(
            f"{flag} {on_one_line(shown, 80)!r} is no URL of a server: give http://HOST:PORT or https://HOST, without "
            "a query"
        )
    login = (url.username, url.password) if url.username or url.password else None
    path = url.path.rstrip("/")
    bare = url.copy_with(username=None, password=None, path=path if path.endswith("/v1") else f"{path}/v1")
    return Address(flag, str(bare), login)


class Endpoint:
    """A server that completes prompts. Many threads may ask it at once; nothing it raises names a key or a password."""

    def __init__(
        self, address: Address, key: str | None, *, timeout_s: float, deadline_s: float, connections: int
    ) -> None:
        self.address, self.is_down = address, False
        self._deadline_s, self._timeout_s = deadline_s, timeout_s
        login = address.login
        self._secrets = [part for part in (key, *(login or ())) if part]
        if login is not None:
            self._secrets.append(base64.b64encode(":".join(login).encode()).decode())
        try:
            self._client = httpx2.Client(
                auth=login,
                headers={} if key is None else {"Authorization": f"Bearer {key}"},
                timeout=httpx2.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
                limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            )
        except (UnicodeEncodeError, ValueError) as error:
            raise UsageError(f"{address}: its API key has a character that no HTTP header takes") from error

    def close(self) -> None:
        """Ends all that is in flight."""
        self._client.close()

    def get(self, path: str) -> object:
        """The JSON at `path`; raises ServerError."""
        with self._explained(), self._client.stream("GET", f"{self.address.url}/{path}") as answer:
            body = self._body(answer)
            self._check_status(answer, body)
            try:
                return from_json(body)
            except ValueError:
                raise ServerError(BAD_ANSWER, "the answer is not JSON", said=body.decode(errors="replace")) from None

    def complete(self, request: Request) -> Completion:
        """The greedy output that `request` asks for; raises ServerError."""
        began_s = time.perf_counter()
        reader = Reader(request, began_s)
        url = f"{self.address.url}/{request.api.path}"
        with self._explained(), self._client.stream("POST", url, json=request.body()) as answer:
            found = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if answer.status_code != 200 or found != "text/event-stream":
                body = self._body(answer)
                self._check_status(answer, body, hint=_hint(request, answer.status_code))
                what = f"the answer is {found or 'untyped'}, not an event stream"
                raise ServerError(BAD_ANSWER, what, said=body.decode(errors="replace"))
            for payload, at_s in payloads(self._pieces(answer, began_s)):
                reader.take(payload, at_s)
            return reader.completion()

    def _pieces(self, answer: httpx2.Response, began_s: float) -> Iterator[bytes]:
        """The bytes of a stream as they come; raises ServerError when it takes too long, tokens or not."""
        for piece in answer.iter_bytes():
            if time.perf_counter() - began_s > self._deadline_s:
                raise ServerError(TIMED_OUT, f"the output was not done in {self._deadline_s:g} s (--deadline)")
            yield piece

    def _body(self, answer: httpx2.Response) -> bytes:
        """The start of an answer that is no stream."""
        found = b""
        for piece in self._pieces(answer, time.perf_counter()):
            found += piece
            if len(found) >= MAX_BODY_LEN:
                break
        return found[:MAX_BODY_LEN]

    def _check_status(self, answer: httpx2.Response, body: bytes, hint: str = "") -> None:
        """Raises ServerError, its message ended by `hint`, unless the status is 200."""
        status = answer.status_code
        if status == 200:
            return
        after_s = retry_after_s(answer.headers.get("retry-after"))
        kind = RATE_LIMITED if status == 429 else SERVER_ERROR if status >= 500 or status == 408 else REFUSED
        raise ServerError(kind, f"status {status}{hint}", after_s, body.decode(errors="replace") or "nothing")

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        """Makes a ServerError of what the HTTP library raises meanwhile, and hides secrets in its message."""
        try:
            yield
        except (ServerError, httpx2.HTTPError, httpx2.StreamError, RuntimeError) as error:
            found = _explained(error, self._timeout_s)
            if found is None:
                raise
            raise found.hidden(self.hide) from None

    def hide(self, text: str) -> str:
        """`text` without this server's key and password, which an answer may repeat."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def _explained(error: Exception, timeout_s: float) -> ServerError | None:
    """What `error` means; None for what is no failure of a request."""
    match error:
        case ServerError():
            return error
        case httpx2.ConnectTimeout():
            return ServerError(UNREACHABLE, f"no connection in {min(CONNECT_S, timeout_s):g} s")
        case httpx2.TimeoutException():
            return ServerError(TIMED_OUT, f"nothing came for {timeout_s:g} s (--timeout)")
        case httpx2.ConnectError():
            return ServerError(UNREACHABLE, "no connection", said=error)
        case httpx2.DecodingError() | httpx2.LocalProtocolError():
            return ServerError(BAD_ANSWER, "the answer cannot be read", said=error)
        case httpx2.TransportError() | httpx2.StreamError():
            return ServerError(UNREACHABLE, "the connection broke", said=error)
        case RuntimeError() if "client has been closed" in str(error):
            return ServerError(UNREACHABLE, "the run was stopped")
        case _:
            return None


def _hint(request: Request, status: int) -> str:
    """What else could be asked of a server that does not have the path of `request`."""
    is_hint = request.api is COMPLETIONS and status in NOT_THERE
    return " (a server that has chat completions alone is asked by --api chat)" if is_hint else ""


def retry_after_s(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date; None where it asks for nothing."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
