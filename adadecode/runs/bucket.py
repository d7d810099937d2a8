"""A run's files in an object store: a conditional write makes an object at most once."""

from collections.abc import Generator
from typing import Any

from adadecode.errors import RunFolderError, UsageError
from adadecode.printable import on_one_line
from adadecode.runs.patience import NUM_TRIES, REMEDY, PassingError, patiently

EXTRAS = {"s3": "s3", "gs": "gcs"}  # what to install for a URL's protocol

# `patiently` asks again: botocore's own tries within each of ours would take minutes. Files are small and read many at a
# time, whole: to read the parts of one at once s3fs would ask for its size before, which is as many requests again
CLIENTS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1},
    "gs": {},
}


class ObjectStorage:
    """A prefix of a bucket. An object is written by one request, so it is there whole or not at all."""

    num_parallel = 32

    def __init__(self, url: str) -> None:
        """Opens `url`; raises UsageError when the package for its protocol is missing."""
        import fsspec

        protocol, _, path = url.partition("://")
        self.location, self._root = url, path.strip("/")
        try:
            self._files: Any = fsspec.filesystem(
                protocol, use_listings_cache=False, skip_instance_cache=True, **CLIENTS[protocol]
            )
        except ImportError as error:
            extra = EXTRAS[protocol]
            raise UsageError(f"{url!r}: pip install 'adadecode[{extra}]' to use {protocol}:// locations") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStorage, (self.location,)  # a connection does not cross processes

    def read(self, name: str) -> bytes:
        return patiently(lambda: self._read(name))

    def replace(self, name: str, content: bytes) -> None:
        def request() -> None:
            try:
                self._put(name, content, "overwrite")
            except Exception as error:
                raise self._refusal(name, "written", error) from error

        patiently(request)

    def create(self, name: str, content: bytes) -> bool:
        def request() -> bool:
            try:
                self._put(name, content, "create")
            except Exception as error:
                if not _is_taken(error):
                    raise self._refusal(name, "written", error) from error
            else:
                return True
            try:
                return self._read(name) == content
            except FileNotFoundError as error:  # deleted since
                raise PassingError(
                    f"{self._where(name)!r} is there and is not, at {NUM_TRIES} tries: {REMEDY}"
                ) from error

        return patiently(request)

    def list(self, folder: str) -> list[str]:
        def request() -> list[str]:
            try:
                found = self._files.find(self._path(folder))
            except FileNotFoundError:
                return []
            except Exception as error:
                raise self._refusal(folder, "listed", error) from error
            return sorted(path.removeprefix(self._root + "/") for path in found)

        return patiently(request)

    def delete(self, name: str) -> None:
        def request() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return
            except Exception as error:
                raise self._refusal(name, "deleted", error) from error

        patiently(request)

    def _read(self, name: str) -> bytes:
        try:
            return self._files.cat_file(self._path(name))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._refusal(name, "read", error) from error

    def _put(self, name: str, content: bytes, mode: str) -> None:
        self._files.pipe_file(self._path(name), content, mode=mode, chunksize=max(len(content) + 1, 5 << 20))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _where(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"

    def _refusal(self, name: str, done: str, error: Exception) -> RunFolderError:
        """What went wrong in one line, whichever of the client's many errors it was."""
        reason = on_one_line(f"{type(error).__name__}: {error}")
        if _is_passing(error):
            return PassingError(f"{self._where(name)!r} cannot be {done} ({reason}; at {NUM_TRIES} tries): {REMEDY}")
        return RunFolderError(
            f"{self._where(name)!r} cannot be {done} ({reason}): check the bucket and its credentials; {REMEDY}"
        )


def _is_taken(error: Exception) -> bool:
    """Whether the store refused to create an object because there is one of that name (412)."""
    return any(isinstance(cause, FileExistsError) or _status(cause) == 412 for cause in _causes(error))


def _is_passing(error: Exception) -> bool:
    """Whether the same request may do later: the store is busy or away, or another creator is at work (a 409 of S3)."""
    for cause in _causes(error):
        if isinstance(cause, (TimeoutError, ConnectionError)) or _code(cause) == "ConditionalRequestConflict":
            return True
        if (status := _status(cause)) is not None and (status in (408, 429) or status >= 500):
            return True
    return False


def _causes(error: BaseException | None) -> Generator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of s3fs or gcsfs carries."""
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    status = found or getattr(error, "code", None) or getattr(error, "status", None)
    return int(str(status)) if str(status).isdigit() else None


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
