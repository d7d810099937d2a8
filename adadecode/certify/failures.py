"""What goes wrong between a request and its output, and whether another try may mend it."""

UNREACHABLE = "ServerUnreachable"  # no connection, or one that broke
TIMED_OUT = "ServerTimeout"  # silent, or not done in time
RATE_LIMITED = "RateLimited"  # 429
REFUSED = "RequestRefused"  # another status that says the request is at fault
SERVER_ERROR = "ServerError"  # a status or an event that says the server is
BAD_ANSWER = "BadAnswer"  # no completion as OpenAI defined it
TRUNCATED = "TruncatedStream"  # an output without its end

DOWN = (UNREACHABLE, TIMED_OUT)  # what a server that is gone does


class ServerError(Exception):
    """One try of one request failed. `kind` is its row's error_type; `retry_after_s` is what the server asks to wait."""

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.retry_after_s = kind, retry_after_s

    @property
    def may_be_mended(self) -> bool:
        """Whether the same request may do at another try."""
        return self.kind != REFUSED
