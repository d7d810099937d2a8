"""Traces of workers, beside the tables of their run: what they are called, and what is said of them."""

from adadecode.runs.storage import Storage, join

PROFILE_DIR = "profile"
SUFFIX = ".json.gz"


def profile_name(worker_id: str, shard_idx: int) -> str:
    """Where in a run the trace goes that a worker makes after a shard."""
    return f"{PROFILE_DIR}/{worker_id}-{shard_idx:05d}{SUFFIX}"


def profile_lines(storage: Storage) -> list[str]:
    """A line for each trace of the run at `storage`, and one where there is none."""
    found = [join(storage.location, name) for name in storage.list(PROFILE_DIR) if name.endswith(SUFFIX)]
    if not found:
        return ["profile: no trace was written; if a worker came to it, its log says why not"]
    return [f"profile: {path}, to be opened at https://ui.perfetto.dev" for path in found]
