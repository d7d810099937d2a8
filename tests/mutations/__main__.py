"""Plants one mutation of the table after another in a copy of the project and runs the tests that must notice.

    python -m tests.mutations [PART OF A NAME ...]

Ends with 1 when fewer than LEAST_CAUGHT of them were caught. One that nobody can notice says why in the table.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
LEAST_CAUGHT = 0.95
TIMEOUT_S = 900.0  # an endless loop is noticed too


def main(wanted: list[str]) -> int:
    """Runs the mutations whose name has one of `wanted` in it, all without; returns the exit code."""
    chosen = [one for one in MUTATIONS if not wanted or any(part in one.name for part in wanted)]
    if not chosen:
        print(f"no mutation has one of {', '.join(wanted)} in its name")
        return 2
    survivors: list[Mutation] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_project(Path(folder) / "project")
        if do_tests_fail(sorted({test for one in chosen for test in one.tests}), copy):
            print("the tests fail as the code is: mend that first")
            return 2
        for idx, mutation in enumerate(chosen):
            started = time.monotonic()
            is_caught = run_tests_with(mutation, copy)
            verdict = (
                "caught" if is_caught else "SURVIVED" if mutation.why_not is None else f"survived: {mutation.why_not}"
            )
            print(
                f"{idx + 1}/{len(chosen)} {mutation.name}: {verdict} ({time.monotonic() - started:.0f} s)", flush=True
            )
            if not is_caught:
                survivors.append(mutation)
    num_caught = len(chosen) - len(survivors)
    print(f"{num_caught} of {len(chosen)} mutations caught")
    return 0 if num_caught >= LEAST_CAUGHT * len(chosen) else 1


def copy_of_project(to: Path) -> Path:
    """A copy of every file that git knows of, as it is in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def run_tests_with(mutation: Mutation, copy: Path) -> bool:
    """Whether the tests of `mutation` fail once it is planted in `copy`, which is as before afterwards."""
    file = copy / mutation.file
    original = file.read_text(encoding="utf-8")
    assert original.count(mutation.before) == 1, mutation.name
    file.write_text(original.replace(mutation.before, mutation.after), encoding="utf-8")
    try:
        return do_tests_fail(mutation.tests, copy)
    finally:
        file.write_text(original, encoding="utf-8")


def do_tests_fail(tests: Sequence[str], copy: Path) -> bool:
    """Whether any of `tests` of the project in `copy` fails, ends its process or takes for ever."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    assert done.returncode in (0, 1, 2) or done.returncode < 0, done.stdout.decode()[-2000:]
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
