"""The file that makes a folder a run's, run.json, and whose the results are that are there already."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adadecode.errors import DamagedError, RunFolderError
from adadecode.files import from_json
from adadecode.runs.commits import commit_names, each, read_commit
from adadecode.runs.editions import WITHDRAWN
from adadecode.runs.fingerprint import changed_settings
from adadecode.runs.patience import PassingError
from adadecode.runs.storage import Storage, open_storage

RUN_FILE = "run.json"


def run_in(storage: Storage) -> dict[str, Any]:
    """The run.json in `storage`; raises RunFolderError when it has none that names a run.

    As PassingError when the storage does not answer, which says nothing of what is there.
    """
    try:
        run = from_json(storage.read(RUN_FILE))
    except PassingError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise RunFolderError(f"{storage.location!r} is not a run folder: it has no readable {RUN_FILE}") from error
    if not isinstance(run, dict) or not all(isinstance(run.get(name), str) for name in ("run_id", "fingerprint")):
        raise RunFolderError(
            f"{storage.location!r} is not a run folder: its {RUN_FILE} names no run_id and fingerprint"
        )
    return run


def shard_size_at(location: str | Path | None) -> int | None:
    """The size of the shards of the run at `location`; None where none is, or it does not tell.

    Raises PassingError when the storage does not answer: another size would be another run's.
    """
    if location is None:
        return None
    try:
        size = part_of(run_in(open_storage(location)), "config").get("shard_size")
    except PassingError:
        raise
    except RunFolderError:
        return None  # no run: what else is wrong there whoever opens the folder says
    return size if type(size) is int and size >= 1 else None


def part_of(run: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The mapping `name` in a run.json; an empty one where somebody put another thing there."""
    part = run.get(name)
    return part if isinstance(part, dict) else {}


def refuse_others_results(location: str | Path, fingerprint: str, facts: dict[str, Any]) -> None:
    """Raises RunFolderError when committed rows of another fingerprint are at `location`; writes nothing."""
    storage = open_storage(location)
    try:
        storage.read(RUN_FILE)
    except FileNotFoundError:
        _refuse_commits_alone(storage, fingerprint)
        return
    theirs = run_in(storage)
    if theirs["fingerprint"] != fingerprint and commit_names(storage):
        changed = changed_settings(part_of(theirs, "config"), part_of(facts, "config"))
        raise RunFolderError(
            f"--out {storage.location!r} belongs to another run (fingerprint {theirs['fingerprint']}, this one is "
            f"{fingerprint}; {changed}): choose another --out, or repeat that run's settings to finish it"
        )


def _refuse_commits_alone(storage: Storage, fingerprint: str) -> None:
    """Raises RunFolderError when commits without a run.json are another run's; damaged ones are nobody's."""
    others = [found for found in _fingerprints(storage) if found != fingerprint]
    if others:
        raise RunFolderError(
            f"--out {storage.location!r} has commits of another run (fingerprint {others[0]}, this one is {fingerprint}) "
            f"and no {RUN_FILE}: choose another --out, or put that run's {RUN_FILE} back"
        )


def _fingerprints(storage: Storage) -> Iterator[str]:
    def found(name: str) -> str | None:
        try:
            commit = read_commit(storage, name)
        except DamagedError:
            return None
        return None if commit is None or WITHDRAWN in commit else commit["fingerprint"]

    yield from filter(None, each(storage, found, commit_names(storage)))
