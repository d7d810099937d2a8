"""What goes wrong between a request and its output, and whether another try may mend it."""

from collections.abc import Callable

from adadecode.printable import on_one_line

UNREACHABLE = "ServerUnreachable"  # no connection, or one that broke
TIMED_OUT = "ServerTimeout"  # silent, or not done in time
RATE_LIMITED = "RateLimited"  # 429
REFUSED = "RequestRefused"  # another status that says the request is at fault
SERVER_ERROR = "ServerError"  # a status or an event that says the server is
BAD_ANSWER = "BadAnswer"  # no completion as OpenAI defined it
TRUNCATED = "TruncatedStream"  # an output without its end

DOWN = (UNREACHABLE, TIMED_OUT)  # what a server that is gone does
MAX_SAID_LEN = 160  # of what a server said, in characters


class ServerError(Exception):
    """One try of one request failed. `kind` is its row's error_type; `retry_after_s` is what the server asks to wait.

    `said` is what the server or a library said, in full: it is shown, cut, after the message.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None, said: object = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry_after_s, self.said = kind, message, retry_after_s, said

    def __str__(self) -> str:
        return self.message if self.said is None else f"{self.message}: {on_one_line(self.said, MAX_SAID_LEN)}"

    def hidden(self, hide: Callable[[str], str]) -> "ServerError":
        """The same after `hide`, which sees what was said before it is cut: half a key would pass it."""
        said = None if self.said is None else hide(str(self.said))
        return ServerError(self.kind, hide(self.message), self.retry_after_s, said)

    @property
    def may_be_mended(self) -> bool:
        """Whether the same request may do at another try."""
        return self.kind != REFUSED
