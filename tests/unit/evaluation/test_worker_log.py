"""What a worker process writes to stderr, read from real ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.folders import write_prompts

ROOT = Path(__file__).parents[3]
LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (\w+) run=(\S+) shard=(\S+) actor=(\S+): (.*)")


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`code` as a process of its own; it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def lines_of(stderr: str) -> list[tuple[str, ...]]:
    """(level, run, shard, actor, message) of every line; each has them."""
    found = [LINE.fullmatch(line) for line in stderr.splitlines()]
    assert None not in found, stderr
    return [match.groups()[1:] for match in found if match is not None]


WORKER = """
import sys
from pathlib import Path
from adadecode.settings import EvalConfig, build_settings
from adadecode.evaluation.shard import do_shard
from adadecode.runs.run import open_run
from adadecode.evaluation.worker import load_worker
from adadecode.evaluation.worker_log import configure_worker_log

model, heads, prompts, out = sys.argv[1:]
flags = dict(model=model, heads=heads, task="jsonl", data_file=prompts, dtype="float32", max_new_tokens=4, shard_size=2)
config = build_settings(EvalConfig, None, flags)
with open_run(config, Path(out)) as prepared:
    configure_worker_log(prepared.folder.run_id, "worker-0")
    worker = load_worker(config, prepared.tasks, "worker-0", 1)
    for shard in (*prepared.shards, prepared.shards[0]):
        outcome, full_s = do_shard(worker, shard, prepared.folder)[:2]
        print(outcome.num_samples, outcome.num_error_samples)
"""


def test_every_line_of_a_worker_names_run_shard_and_actor(tiny, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", ["w5 w6", "w7", " ".join(["w7"] * 2000)])
    done = python(WORKER, tiny.model, tiny.heads, prompts, tmp_path / "gsm8k-1a2b")
    assert done.stdout.splitlines() == ["2 0", "1 1", "2 0"]
    lines = lines_of(done.stderr)
    assert {(run, actor) for _, run, _, actor, _ in lines} == {("gsm8k-1a2b", "worker-0")}
    shown = [(level, shard, re.sub(r"\d+\.\d s", "T s", message)) for level, _, shard, _, message in lines]
    assert shown[0][:2] == ("INFO", "-")
    assert re.fullmatch(rf"loaded and warmed up {re.escape(str(tiny.model))}, (native|eager) kernels", shown[0][2])
    assert re.fullmatch(r"start-up of worker-0: T s \(.+\)", shown[1][2])
    started = "started: {} samples, methods vanilla, vanilla-w1, adadecode"
    too_long = "failed: PromptTooLongError: the prompt has 2000 tokens; the model's context of 1024 needs 1 to 1023"
    assert shown[2:6] == [
        ("INFO", "0", started.format(2)),
        ("INFO", "0", "evaluated in T s"),
        ("INFO", "0", "committed 6 rows"),
        ("INFO", "1", started.format(1)),
    ]
    assert [(level, shard) for level, shard, _ in shown[6:9]] == [("WARNING", "1")] * 3
    methods = ("vanilla-w1", "adadecode", "vanilla")  # their order in shard 1
    for method, (_, _, message) in zip(methods, shown[6:9], strict=True):
        assert message.startswith(f"jsonl/00002 {method} {too_long}")
    assert shown[9:] == [
        ("INFO", "1", "evaluated in T s"),
        ("INFO", "1", "committed 3 rows"),
        ("INFO", "0", "was committed before"),
    ]


def test_configured_twice_a_line_is_written_once_and_with_the_new_names():
    code = """
import logging
from adadecode.evaluation.worker_log import configure_worker_log, shard_context
log = logging.getLogger("adadecode.some.module")
configure_worker_log("run-1", "worker-0")
configure_worker_log("run-2", "worker-1")
log.debug("too fine")
with shard_context(7):
    log.info("one")
    with shard_context(8):
        log.warning("two\\nlines of %d", 2)
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("three")
log.info("four")
"""
    lines = lines_of(python(code).stderr)
    assert {line[1:4:2] for line in lines} == {("run-2", "worker-1")}
    shown = [(level, shard, message) for level, _, shard, _, message in lines]
    assert shown[:4] == [
        ("INFO", "7", "one"),
        ("WARNING", "8", "two"),
        ("WARNING", "8", "lines of 2"),
        ("ERROR", "7", "three"),
    ]
    assert shown[-2:] == [("ERROR", "7", "ZeroDivisionError: division by zero"), ("INFO", "-", "four")]


@pytest.mark.parametrize("configures_root_first", [True, False])
def test_the_root_logger_stays_as_it_is_and_hears_nothing(configures_root_first):
    code = f"""
import logging, sys
from adadecode.evaluation.worker_log import configure_worker_log
basic = dict(format="ROOT %(name)s %(message)s", stream=sys.stdout, level=logging.WARNING)
if {configures_root_first}:
    logging.basicConfig(**basic)
before = list(logging.root.handlers), logging.root.level
configure_worker_log("run", "worker-0")
assert (list(logging.root.handlers), logging.root.level) == before
if not {configures_root_first}:
    logging.basicConfig(**basic)
logging.getLogger("adadecode.x").warning("ours")
logging.getLogger("other").warning("theirs")
"""
    done = python(code)
    assert done.stdout == "ROOT other theirs\n"
    assert [line[-1] for line in lines_of(done.stderr)] == ["ours"]


def test_a_program_that_did_not_ask_sees_nothing_and_one_with_logging_of_its_own_sees_it_there():
    code = """
import logging, sys, adadecode
logging.getLogger("adadecode.x").error("unasked")
logging.basicConfig(format="ROOT %(message)s", stream=sys.stdout)
logging.getLogger("adadecode.x").error("asked")
"""
    done = python(code)
    assert (done.stdout, done.stderr) == ("ROOT asked\n", "")


def test_a_local_run_with_errors_logs_nothing_on_the_terminal(tiny, tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", ["w5", " ".join(["w7"] * 2000)])
    flags = tiny.flags(data_file=prompts, max_new_tokens=3)
    code = "import sys; from adadecode.cli.main import main; main(sys.argv[1:])"
    done = python(code, "eval", "--local", *flags, "--out", tmp_path / "run")
    assert done.stderr == ""
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("errors: "))
    assert line.startswith(
        "errors: 1 of 2 samples failed: adadecode 1, vanilla 1, vanilla-w1 1 rows (3 PromptTooLongError); "
        "first: jsonl/00001: the prompt has 2000 tokens; "
    )
    assert " run=" not in done.stdout
