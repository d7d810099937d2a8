"""The cluster that a run without `--address` starts: it asks for a token, which no file holds."""

import json
import os
import subprocess
import sys

import pytest

# Joins as a stranger of the machine would: with no token, and with what files of the home hold.
STRANGER = """
import sys
from ray_jobs.cluster import _probe
try:
    _probe(sys.argv[1])
    print("let in")
except Exception as error:
    print(type(error).__name__)
"""
OWNER = f"""
import json, os, subprocess, sys
import ray
from ray_jobs.cluster import connect, disconnect
connect(None)
worked = ray.get(ray.remote(lambda: "worked").remote())
ask = [sys.executable, "-c", {STRANGER!r}, ray.get_runtime_context().gcs_address]
told = []
for token in ({{"RAY_AUTH_MODE": "disabled"}}, {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}}):
    environment = {{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}}
    told.append(subprocess.run(ask, env=environment | token, capture_output=True, text=True).stdout.strip())
disconnect()
print(json.dumps([worked, told, "RAY_AUTH_TOKEN" in os.environ]))
"""


@pytest.mark.slow
def test_the_cluster_of_a_run_asks_for_a_token_that_is_in_no_file(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.run([sys.executable, "-c", OWNER], env=environment, capture_output=True, text=True, timeout=240)
    assert owner.returncode == 0, owner.stderr
    worked, told, is_left = json.loads(owner.stdout.splitlines()[-1])
    assert worked == "worked"
    assert told == ["AuthenticationError", "AuthenticationError"]
    assert not is_left, "another cluster that this process joins has another token"
    assert not (tmp_path / ".ray").exists()
