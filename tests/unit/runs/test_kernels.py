"""The kernels of a run are settled once, by whichever worker has loaded first, in every kind of storage."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from adadecode.errors import RunFolderError
from adadecode.records import ChosenKernels
from adadecode.runs.kernels import KERNELS_FILE, kernels_lines, resume_kernels, settle_kernels, settled_kernels
from adadecode.runs.storage import open_storage

NATIVE, EAGER = ChosenKernels("native"), ChosenKernels("eager", "there is no C++ compiler")


def commits_of(*kernels: str | None, gpu: str | None = None) -> dict:
    workers = [{"worker_id": "w", "gpu": gpu} | ({} if name is None else {"kernels": name}) for name in kernels]
    return {idx: {"worker": worker} for idx, worker in enumerate(workers)}


def test_the_first_worker_settles_the_kernels_for_all(location):
    storage = open_storage(location)
    assert (settled_kernels(storage), kernels_lines(storage)) == (None, [])
    first = settle_kernels(storage, EAGER, "worker-0")
    assert first.kernels == "eager"
    assert settle_kernels(storage, NATIVE, "worker-1") == settled_kernels(storage) == first
    (line,) = kernels_lines(storage)
    assert line.startswith("kernels: eager, because there is no C++ compiler (on ")


def test_workers_that_settle_at_once_come_to_the_same(location):
    def settle(idx: int) -> ChosenKernels:
        return settle_kernels(open_storage(location), (NATIVE, EAGER)[idx % 2], f"worker-{idx}")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(settle, range(8)))) == 1


def test_a_run_with_rows_keeps_its_kernels_and_one_without_does_not(location):
    storage = open_storage(location)
    resume_kernels(storage, commits_of("native", "eager", "native", None))
    assert settled_kernels(storage) == NATIVE, "most shards of a run that was mixed before"
    resume_kernels(storage, commits_of("eager"))
    assert settled_kernels(storage) == NATIVE
    resume_kernels(storage, commits_of(None))
    assert settled_kernels(storage) is None
    resume_kernels(storage, commits_of("eager"))
    assert kernels_lines(storage) == ["kernels: eager, because committed shards were computed with them"]
    resume_kernels(storage, {})
    resume_kernels(storage, commits_of("graphs", gpu="H100"))
    assert kernels_lines(storage) == [], "what auto takes on a GPU"


def test_kernels_that_cannot_be_read_are_one_line(tmp_path):
    for content in ("", "[]", "{}", "[" * 100_000):
        (tmp_path / KERNELS_FILE).write_text(content)
        with pytest.raises(RunFolderError, match=r"kernels.json: damaged; delete it"):
            settled_kernels(open_storage(tmp_path))
        assert kernels_lines(open_storage(tmp_path)) == []
