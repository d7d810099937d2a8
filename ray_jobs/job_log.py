"""A job's log, read as it grows: what was shown of it is not fetched whole again where connections break.

Ray has three ways to a log (2.60, `dashboard/modules/job` and `log`). `get_job_logs` fetches all of it. `tail_job_logs`
sends what is new while its connection lasts, and begins at the beginning each time one is opened. The state API
(`/api/v0/logs/stream`, and `file` for an answer that ends) begins at any number of lines before the end: a connection that
was lost costs those lines and no more. The dashboard cuts each after five minutes. That API is what is used here.
"""

import asyncio
import codecs
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from ray.dashboard.modules.job.common import JOB_LOGS_PATH_TEMPLATE

from adadecode.printable import on_one_line
from adadecode.records import Say
from ray_jobs.dashboard import ANSWER_S, PatientClient

LAST_LINES, ALL_LINES = 2000, -1
END_LEN = 16384
INTERVAL_S = 0.5  # in which the head looks whether a log has grown
QUIET_S = 60.0  # of a log, after which it is asked for anew: a connection may be cut without a sign
UNPLACED_S = 5.0  # after which what came is taken for all the last lines
WHOLE_S = 3600.0  # that the head has for sending a whole log; its default is 30 s


def new_decoder() -> codecs.IncrementalDecoder:
    """Makes text of UTF-8 in pieces, which may end in the middle of a character."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


@dataclass
class JobLog:
    """What was shown of a log that grows at its end; lengths in bytes.

    What comes after it is found in the log's last lines by its own end, END_LEN bytes or all of a shorter log. One that
    repeats these word for word is read again from its beginning.
    """

    say: Say
    shown_len: int = 0
    end: bytes = b""
    is_lost: bool = False  # the end was not once among the last lines: too much was missed
    decoder: codecs.IncrementalDecoder = field(default_factory=new_decoder)

    def show(self, piece: bytes) -> None:
        """Shows what comes next."""
        self.shown_len += len(piece)
        self.end = (self.end + piece)[-END_LEN:]
        if text := self.decoder.decode(piece):
            self.say(text)

    def rest_of(self, last: bytes) -> bytes | None:
        """What of `last`, a part of the log, was not shown yet; None where the end of what was shown is not in it once."""
        start = last.find(self.end)
        return last[start + len(self.end) :] if start >= 0 and start == last.rfind(self.end) else None


class Reading:
    """One answer of the head with a log: all of it, or its last lines; shows what is new."""

    def __init__(self, log: JobLog) -> None:
        self.num_lines = LAST_LINES if log.shown_len and not log.is_lost else ALL_LINES
        self._log, self._known_len = log, log.shown_len if self.num_lines == ALL_LINES else 0
        self._unplaced: bytes | None = None if self.num_lines == ALL_LINES else b""

    def add(self, piece: bytes) -> None:
        """Takes the next piece of the answer."""
        if self._unplaced is None:
            known = min(len(piece), self._known_len)
            self._known_len -= known
            if known < len(piece):
                self._log.show(piece[known:])
            return
        self._unplaced += piece
        if (rest := self._log.rest_of(self._unplaced)) is not None:
            self._unplaced = None
            self._log.show(rest)

    def is_placed(self) -> bool:
        """Whether it is known where in the log this answer is; what came is shown as soon as it is."""
        return not self._unplaced


def show_growth(client: PatientClient, job_id: str, node_id: str, log: JobLog, has_ended: Callable[[], bool]) -> None:
    """Shows what a running job writes until it `has_ended`, which is asked in quiet moments, or the answer ends.

    Raises what a request raises that cannot be made, and RuntimeError where the head refuses it.
    """
    asyncio.run(_read(client, job_id, node_id, log, "stream", has_ended))


def show_rest(client: PatientClient, job_id: str, node_id: str, log: JobLog) -> None:
    """Shows what there is now of the log and was not shown; raises as `show_growth` does."""
    asyncio.run(_read(client, job_id, node_id, log, "file"))
    if log.is_lost:
        asyncio.run(_read(client, job_id, node_id, log, "file"))


async def _read(
    client: PatientClient,
    job_id: str,
    node_id: str,
    log: JobLog,
    kind: Literal["stream", "file"],
    has_ended: Callable[[], bool] = lambda: False,
) -> None:
    reading = Reading(log)
    wanted: dict[str, Any] = {"node_id": node_id, "filename": JOB_LOGS_PATH_TEMPLATE.format(submission_id=job_id)}
    wanted |= {"lines": reading.num_lines, "timeout": int(WHOLE_S)}
    wanted |= {"interval": INTERVAL_S} if kind == "stream" else {}
    silence_s = ANSWER_S if kind == "file" else QUIET_S + ANSWER_S
    patience = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S, sock_read=silence_s)
    async with (
        client.log_session() as session,
        session.get(f"{client.get_address()}/api/v0/logs/{kind}", params=wanted, timeout=patience) as answer,
    ):
        if not answer.ok:
            raise RuntimeError(f"status code {answer.status}: {on_one_line(await answer.text())}")
        opened_at = heard_at = time.monotonic()
        while True:
            try:
                piece = await asyncio.wait_for(answer.content.readany(), None if kind == "file" else 2 * INTERVAL_S)
            except (TimeoutError, aiohttp.ClientPayloadError) as error:
                if kind == "file":
                    raise
                if isinstance(error, aiohttp.ClientPayloadError):  # the head ends each after a while
                    log.is_lost = not reading.is_placed()
                    return
                quiet_s = time.monotonic() - heard_at
                log.is_lost = not reading.is_placed() and quiet_s > UNPLACED_S
                if log.is_lost or quiet_s > QUIET_S or await asyncio.to_thread(has_ended):
                    return
                continue
            if not piece:
                log.is_lost = not reading.is_placed()
                return
            heard_at = time.monotonic()
            reading.add(piece)
            if kind == "stream" and not reading.is_placed() and heard_at - opened_at > UNPLACED_S:
                log.is_lost = True  # also where the log goes on and on
                return
