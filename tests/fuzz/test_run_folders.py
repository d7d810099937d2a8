"""A finished run whose JSON files hold any other values: it is reported and verified, or refused; never a traceback."""

import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from adadecode.cli.main import main
from adadecode.errors import RunFolderError
from adadecode.printable import UNPRINTABLE
from adadecode.runs.folder import RunFolder
from adadecode.runs.run_file import refuse_others_results
from tests.fuzz.cases import IS_WHOLE, fuzzed

GOLDEN = Path(__file__).parents[1] / "golden" / "run-0.1.0" / "complete"
OWNER = {"user": "u", "host": "h", "boot_id": "b", "pid_space": "p", "pid": 7, "started": 9, "id": "i"}
LEASE = {"owner": OWNER, "since": "2026-01-01T00:00:00+00:00", "beat": 3, "released": False}
START = {"at": "2026-01-01T00:00:00+00:00", "command": "adadecode eval", "adadecode": "1", "placement": {"workers": 1}}
FILES = ("run.json", "commits/00000.json", "commits/00003.json", "lease/00001.json")
ODD = [None, 0, -1, 5, 1.5, True, "", "abc", "\x1b[2J\nparity 9/9", "9" * 20, [], [1], [[]], {}, [{}], {"a": 1}, [None]]
ODD += ["others", "2026-01-01", "running", float("nan"), 10**30]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run with the entries of this version's run.json and a driver's lease, to be altered by each case."""
    out = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("finished") / "run"))
    run = json.loads((out / "run.json").read_text())
    workers = [worker | {"model_notes": ["odd"]} for worker in run["workers"]]
    (out / "run.json").write_text(json.dumps(run | {"starts": [START], "workers": workers}))
    (out / "lease").mkdir()
    (out / "lease" / "00001.json").write_text(json.dumps(LEASE))
    return out


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each key that it has, or could have."""
    if isinstance(content, dict):
        found = [(content, key) for key in [*content, "others"]]
        return found + [place for value in content.values() for place in places(value)]
    if isinstance(content, list):
        found = [(content, idx) for idx in range(len(content))]
        return found + [place for value in content for place in places(value)]
    return []


@fuzzed
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(FILES), st.integers(0, 10**6), st.sampled_from(["remove", *ODD])),
        min_size=1,
        max_size=3,
    ),
    is_running=st.booleans(),
)
def test_any_values_in_the_json_of_a_run_are_reported_or_refused(finished, changes, is_running):
    before = {name: (finished / name).read_bytes() for name in FILES}
    contents = {name: json.loads(content) for name, content in before.items()}
    if is_running:
        contents["run.json"]["status"] = "running"
    for name, choice, value in changes:
        found = places(contents[name])
        container, key = found[choice % len(found)]
        if value != "remove":
            container[key] = copy.deepcopy(value)
        elif isinstance(container, list) or key in container:
            del container[key]
    try:
        for name, content in contents.items():
            (finished / name).write_text(json.dumps(content))
        commands = [("verify", finished), ("report", finished), ("report", finished.parent)]
        if IS_WHOLE:  # as long as all the others together
            commands += [("compare", GOLDEN, finished, "--fail-if-slower", "5%"), ("export", finished, "--aiperf")]
        for command, *arguments in commands:
            result = CliRunner().invoke(main, [command, *map(str, arguments)])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
            assert result.exit_code in (0, 2, 3, 4), result.output
            assert not any(map(UNPRINTABLE.search, result.output.splitlines()))
        for fingerprint in ("another", json.loads(before["run.json"])["fingerprint"]):  # as `eval` begins
            with contextlib.suppress(RunFolderError):
                refuse_others_results(finished, fingerprint, {"config": {"task": "demo"}})
                RunFolder(finished)
    finally:
        for name, content in before.items():
            (finished / name).write_bytes(content)
