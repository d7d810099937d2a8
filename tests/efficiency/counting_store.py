"""An S3-compatible store in memory that answers after a set time and counts what it is asked: requests and bytes by kind.

It knows what a run asks of a bucket: list, get, head, put with `If-None-Match`, delete. It is for measuring alone:
tests that hold a store to its word use moto's.

    python -m tests.efficiency.counting_store PORT
"""

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Generator
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET, PAGE = "runs", 1000
MOMENT, HTTP_MOMENT = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"
START_S = 30


class Store:
    """The objects of one bucket, by key."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.latency_s = 0.0
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.lstrip("/")
        if path == "-/told":
            return self._told(request)
        await asyncio.sleep(self.latency_s)
        key = path.removeprefix(BUCKET).lstrip("/")
        response = self._list(request) if not key else await self._object(request, key)
        kind = f"{request.method} {key.rpartition('/')[0].rpartition('/')[2]}" if key else "LIST"
        sent = len(response.body) if isinstance(response.body, bytes) else 0
        self.counts[kind].update(requests=1, bytes=sent + (request.content_length or 0))
        return response

    def _told(self, request: web.Request) -> web.Response:
        """What was counted since the last time; takes the latency from now on."""
        self.latency_s = float(request.query.get("latency_s", self.latency_s))
        counts, self.counts = self.counts, defaultdict(Counter)
        return web.json_response(counts)

    def _list(self, request: web.Request) -> web.Response:
        prefix, after = request.query.get("prefix", ""), request.query.get("continuation-token", "")
        found = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{MOMENT}</LastModified>"
            f"<Size>{len(self.objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in found[:PAGE]
        )
        more = f"<NextContinuationToken>{escape(found[PAGE - 1])}</NextContinuationToken>" if found[PAGE:] else ""
        return _xml(
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{PAGE}</MaxKeys>"
            f"<KeyCount>{len(found[:PAGE])}</KeyCount><IsTruncated>{str(bool(found[PAGE:])).lower()}</IsTruncated>"
            f"{more}{entries}</ListBucketResult>"
        )

    async def _object(self, request: web.Request, key: str) -> web.Response:
        if request.method == "PUT":
            content = await request.read()
            if request.headers.get("If-None-Match") == "*" and key in self.objects:
                return _error(412, "PreconditionFailed")
            self.objects[key] = content
            return web.Response(headers={"ETag": _tag(content)})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        if key not in self.objects:
            return _error(404, "NoSuchKey")
        content = self.objects[key]
        return web.Response(body=content, headers={"ETag": _tag(content), "Last-Modified": HTTP_MOMENT})


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str) -> web.Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)


def _xml(text: str, status: int = 200) -> web.Response:
    return web.Response(body=text.encode(), status=status, content_type="application/xml")


@contextlib.contextmanager
def counting_store() -> Generator[str]:
    """A store in a process of its own: the URL at which it tells; the environment names it to s3fs meanwhile."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    with subprocess.Popen([sys.executable, "-m", __spec__.name, str(port)]) as server:
        try:
            deadline = time.monotonic() + START_S
            while True:
                with contextlib.suppress(OSError):
                    told(endpoint)
                    break
                assert server.poll() is None, "the store ended"
                assert time.monotonic() < deadline, "the store does not answer"
                time.sleep(0.05)
            yield endpoint
        finally:
            server.terminate()


def told(endpoint: str, latency_s: float | None = None) -> dict[str, dict[str, int]]:
    """What the store counted since it was last asked, by kind of request; it answers after `latency_s` from now on."""
    query = "" if latency_s is None else f"?latency_s={latency_s}"
    with urllib.request.urlopen(f"{endpoint}/-/told{query}", timeout=5) as answer:
        return json.load(answer)


def main() -> None:
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", Store().answer)
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
