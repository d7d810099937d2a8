"""One engine per table: kernels that a run keeps, and what is said where shards were computed by several engines."""

import shutil
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adadecode.errors import KernelsError
from adadecode.evaluation import run_worker
from adadecode.evaluation.worker import load_worker
from adadecode.kernels.library import load_library
from adadecode.provenance import code_hash
from adadecode.records import ChosenKernels
from adadecode.runs.folder import read_commits, read_run
from adadecode.runs.kernels import KERNELS_FILE, settle_kernels
from adadecode.runs.storage import open_storage
from adadecode.settings import EvalConfig
from tests.folders import undo_shard
from tests.models import needs_compiler, tiny_model
from tests.planting import edit_json, plant_worker

NO_COMPILER = "/nowhere/no-such-g++ cannot compile the native kernels ([Errno 2] No such file or directory: "


@pytest.fixture(autouse=True)
def recompiled():
    """The library is looked for anew in this test and after it."""
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.fixture(scope="module")
def finished(tiny, cli, tmp_path_factory) -> Path:
    """The folder of a complete run of three shards; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = cli("eval", "--local", *tiny.flags(), "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def interrupted(finished, tmp_path) -> Path:
    """A copy of the run with one shard to do."""
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    undo_shard(out, 1)
    return out


@pytest.fixture
def rerun(tiny, cli):
    """The same command again, with `changed` flags, on folder `out`."""

    def run(out: Path, **changed: object):
        load_library.cache_clear()
        return cli("eval", "--local", *tiny.flags(**changed), "--out", out)

    return run


def kernels_of(out: Path) -> list[str]:
    return [commit["worker"]["kernels"] for commit in read_commits(out).values()]


@needs_compiler
def test_a_resume_that_would_come_to_other_kernels_is_refused_and_one_that_can_have_them_goes_on(
    interrupted, rerun, cli, monkeypatch
):
    before = sorted(file.name for file in (interrupted / "samples").rglob("*.parquet"))
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "/nowhere/no-such-g++")
        refused = rerun(interrupted, threads=2)
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(
        f"adadecode: the run at {str(interrupted)!r} has native kernels, and here auto gives eager because {NO_COMPILER}"
    )
    assert line.endswith(f"mend that on {socket.gethostname()}, or start another run with another --out")
    assert sorted(file.name for file in (interrupted / "samples").rglob("*.parquet")) == before
    assert sorted(read_commits(interrupted)) == [0, 2]
    result = rerun(interrupted, threads=2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert kernels_of(interrupted) == ["native"] * 3
    mixed = "2 engines are mixed, so speeds are averages over them: threads 1, 2"
    assert mixed in result.stdout.splitlines()
    for command in ("report", "verify"):
        told = cli(command, interrupted)
        assert (told.exit_code, told.stderr) == (0, "")
        assert mixed in told.stdout.splitlines()
        engines = [line for line in told.stdout.splitlines() if line.startswith("engine of ")]
        assert [line.partition(":")[0] for line in engines] == ["engine of 2 of 3 shards", "engine of 1 of 3 shards"]
    assert pq.read_table(interrupted / "summary.parquet")["num_engines"].to_pylist() == [2, 2, 2]


@needs_compiler
def test_a_run_keeps_the_kernels_it_came_to_although_better_ones_are_there_later(
    tiny, cli, rerun, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "/nowhere/no-such-g++")
        first = rerun(out)
    assert first.exit_code == 0, first.stderr
    (line,) = [line for line in first.stdout.splitlines() if line.startswith("kernels: ")]
    assert line.startswith(f"kernels: eager, because {NO_COMPILER}")
    assert line.endswith(f"(on {socket.gethostname()}, the first to load)")
    undo_shard(out, 1)
    again = rerun(out)
    assert again.exit_code == 0, again.stderr
    assert line in again.stdout.splitlines()
    assert kernels_of(out) == ["eager"] * 3
    assert "mixed" not in again.stdout
    for shard_idx in range(3):
        undo_shard(out, shard_idx)
    assert rerun(out).exit_code == 0
    assert kernels_of(out) == ["native"] * 3, "a run without rows may come to other kernels"


@needs_compiler
def test_a_run_of_an_older_version_keeps_the_kernels_of_its_commits(interrupted, rerun, monkeypatch):
    (interrupted / KERNELS_FILE).unlink()
    monkeypatch.setenv("CXX", "/nowhere/no-such-g++")
    result = rerun(interrupted)
    assert (result.exit_code, "has native kernels" in result.stderr) == (2, True)


@needs_compiler
def test_other_kernels_that_are_asked_for_are_other_settings(interrupted, rerun):
    result = rerun(interrupted, kernels="eager")
    assert (result.exit_code, "different: kernels" in result.stderr) == (2, True)


def test_kernels_that_were_asked_for_need_no_explanation(rerun, tmp_path):
    out = tmp_path / "run"
    assert rerun(out, kernels="eager").exit_code == 0
    undo_shard(out, 1)
    result = rerun(out, kernels="eager")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "kernels: " not in result.stdout
    assert not (out / KERNELS_FILE).exists()


@needs_compiler
def test_a_worker_that_is_overtaken_while_it_loads_takes_the_kernels_of_the_first(monkeypatch, tmp_path):
    loads = []

    def load_worker(config, tasks, worker_id, threads, load):
        loads.append(config.kernels)
        settle_kernels(open_storage(tmp_path), ChosenKernels("eager", "it had no compiler"), "another")
        return run_worker.Worker(worker_id, config, tiny_model(kernels=config.kernels), None, {}, 8)

    monkeypatch.setattr(run_worker, "load_worker", load_worker)
    config = EvalConfig(dtype="float32")
    worker = run_worker.load_run_worker(config, (), "worker-1", 1, open_storage(tmp_path))
    assert (loads, worker.model.kernels) == (["auto", "eager"], "eager")
    loads.clear()
    run_worker.load_run_worker(config, (), "worker-2", 1, open_storage(tmp_path))
    assert loads == ["eager"]


@needs_compiler
def test_a_worker_that_is_overtaken_and_cannot_have_those_kernels_is_refused(monkeypatch, tmp_path):
    def load_worker(config, tasks, worker_id, threads, load):
        settle_kernels(open_storage(tmp_path), ChosenKernels("native"), "another")
        return run_worker.Worker(worker_id, config, tiny_model(kernels=config.kernels), None, {}, 8)

    monkeypatch.setattr(run_worker, "load_worker", load_worker)
    monkeypatch.setenv("CXX", "/nowhere/no-such-g++")
    with pytest.raises(KernelsError, match="has native kernels, and here auto gives eager because /nowhere") as caught:
        run_worker.load_run_worker(EvalConfig(dtype="float32"), (), "worker-1", 1, open_storage(tmp_path))
    assert "\n" not in str(caught.value)


def test_kernels_that_fail_where_auto_would_take_them_too_say_what_failed(monkeypatch, tmp_path):
    """As on a GPU whose torch has no attention for the heads: there is no other choice that has a reason."""

    def load_worker(config, tasks, worker_id, threads, load):
        raise KernelsError("torch has no attention with a mask for torch.float16")

    monkeypatch.setattr(run_worker, "load_worker", load_worker)
    monkeypatch.setattr(run_worker, "choose_kernels", lambda *_: ChosenKernels("eager"))
    settle_kernels(open_storage(tmp_path), ChosenKernels("eager"), "another")
    with pytest.raises(KernelsError, match="has eager kernels, and here torch has no attention with a mask"):
        run_worker.load_run_worker(EvalConfig(dtype="float32"), (), "worker-1", 1, open_storage(tmp_path))


def test_a_worker_without_the_graphs_of_its_run_is_not_told_to_use_other_kernels(monkeypatch, tmp_path):
    def load_worker(config, tasks, worker_id, threads, load):
        why = "CUDA graphs fail here (no capture)"
        raise KernelsError(f"--kernels graphs: {why}; use --kernels eager, which is slower", why)

    monkeypatch.setattr(run_worker, "load_worker", load_worker)
    storage = open_storage(tmp_path)
    settle_kernels(storage, ChosenKernels("graphs"), "another")
    with pytest.raises(
        KernelsError, match=r"has graphs kernels, and here CUDA graphs fail here \(no capture\): mend that"
    ):
        run_worker.load_run_worker(EvalConfig(device="cuda", dtype="float32"), (), "worker-1", 1, storage)


@pytest.mark.parametrize("command", ["generate", "bench", "train-heads", "tune"])
def test_every_command_that_decodes_says_why_kernels_are_slow(command, tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/no-such-g++")
    model = ("--model", tiny.model, "--dtype", "float32", "--max-new-tokens", 2)
    data = ("--task", "jsonl", "--data-file", tiny.prompts)
    arguments = {
        "generate": ("w10 w20", *model, "--heads", tiny.heads),
        "bench": (*model, *data, "--limit", 1, "--repeats", 1, "--methods", "vanilla"),
        "train-heads": (*model, *data, "--exits", 1, "--epochs", 1, "--out", tmp_path / "heads"),
        "tune": (*model, *data, "--heads", tiny.heads, "--out", tmp_path / "tuned"),  # too few prompts, it finds then
    }
    result = cli(command, *arguments[command])
    assert result.exit_code == (2 if command == "tune" else 0), result.stderr
    (line,) = [line for line in result.output.splitlines() if line.startswith("kernels: ")]
    assert line.startswith(f"kernels: eager, because {NO_COMPILER}")


def plant(out: Path, **facts: object) -> None:
    """Has one commit say that its worker was another, of a run that was not yet closed."""
    plant_worker(out, 1, **facts)
    edit_json(out / "run.json", lambda run: run.update(status="running"))


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    ("fact", "what"),
    [
        ({"model_hash": "0"}, "weights"),
        ({"heads_hash": {"jsonl": "0"}}, "heads"),
        ({"exits": {"jsonl": [1]}}, "exits"),
        ({"width": 16}, "widths"),
        ({"code_hash": "0"}, "code of engine, kernels or model"),
        ({"chat_template_hash": "0"}, "chat templates"),
    ],
)
def test_shards_of_two_experiments_make_verify_exit_3(fact, what, copied, cli):
    plant(copied, **fact)
    result = cli("verify", copied)
    assert result.exit_code == 3
    assert f"\nengines: shards were computed with different {what}: " in result.stdout
    assert f"\nengines: shards were computed with different {what}: " in cli("report", copied).stdout


@pytest.mark.parametrize(
    "fact",
    [
        {"kernels": "another"},
        {"cpu": "another"},
        {"gpu_driver": "another"},
        {"threads": 64},
        {"torch": "another"},
        {"python": "another"},
    ],
)
def test_shards_of_two_engines_are_told_by_every_command_and_exit_0(fact, copied, cli, rerun):
    plant(copied, **fact)
    (value,) = fact.values()
    for result in (rerun(copied), cli("verify", copied), cli("report", copied)):
        assert (result.exit_code, result.stderr) == (0, "")
        (line,) = [line for line in result.stdout.splitlines() if "engines are mixed" in line]
        assert str(value) in line
    assert pq.read_table(copied / "summary.parquet")["num_engines"].to_pylist() == [2, 2, 2]


def test_what_computed_the_rows_is_named_and_the_settings_of_one_start_are_not_called_the_runs(finished, cli):
    (worker,) = read_run(finished)["workers"]
    for command in ("report", "verify"):
        lines = cli(command, finished).stdout.splitlines()
        (engine,) = [line for line in lines if line.startswith("engine: ")]
        assert engine == (
            f"engine: {worker['kernels']} kernels, float32, {worker['cpu']}, 1 thread, torch {worker['torch']}, "
            f"Python {worker['python']}"
        )
    report = cli("report", finished).stdout
    assert not [line for line in report.splitlines() if line.startswith(("config.threads", "config.kernels"))]
    assert read_run(finished)["provenance"]["code_hash"] == worker["code_hash"]


def test_every_start_that_computes_is_stored_and_reported_with_its_command(interrupted, rerun, cli, monkeypatch):
    monkeypatch.setattr("sys.argv", ["adadecode", "eval", "--task", "two words", "--out", "s3://me:secret@bucket/run"])
    assert rerun(interrupted, threads=2).exit_code == 0
    assert rerun(interrupted, threads=3).exit_code == 0, "this one has nothing to compute"
    first, second = read_run(interrupted)["starts"]
    assert second["command"] == "adadecode eval --task 'two words' --out s3://HIDDEN@bucket/run"
    assert (first["placement"]["threads"], second["placement"]["threads"]) == (1, 2)
    assert first["code_hash"] == second["code_hash"]
    assert first.keys() == second.keys() == {"at", "command", "adadecode", "code_hash", "git_sha", "placement"}
    lines = [line for line in cli("report", interrupted).stdout.splitlines() if line.startswith("start ")]
    assert len(lines) == 2
    assert lines[1].startswith(f"start 2, {second['at']}: {second['command']} (threads=2, workers=1, local=True, ")


def test_changed_code_is_told_at_the_resume_and_a_table_of_both_is_a_disagreement(interrupted, rerun, cli, monkeypatch):
    for user in ("evaluation.shard", "runs.run", "runs.starts"):
        monkeypatch.setattr(f"adadecode.{user}.code_hash", lambda: "fedcba9876543210")
    result = rerun(interrupted)
    assert result.stdout.startswith("the code of engine, kernels or model has changed: committed shards are of ")
    assert result.exit_code == 3
    assert "shards were computed with different code of engine, kernels or model: " in result.stdout
    assert cli("verify", interrupted).exit_code == 3


def test_a_workers_code_is_hashed_when_it_loads_and_not_at_its_first_commit(finished):
    """An edit of the sources in between is not what decodes."""
    config = EvalConfig.model_validate(read_run(finished)["config"])
    code_hash.cache_clear()
    load_worker(config, ("jsonl",), "w", 1)
    assert code_hash.cache_info().currsize == 1
