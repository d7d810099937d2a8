"""The batch script under cluster/slurm with the real `ray symmetric-run`, alone in namespaces of its own.

`ray stop`, with which that command ends, ends every Ray of the machine that it sees; here it sees the job's alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adadecode.runs.folder import read_run

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--net", "--fork", "--mount-proc"]
LOOPBACK_UP = """
import fcntl, socket, struct, sys, os
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
os.execvp(sys.argv[1], sys.argv[1:])
"""


def can_be_alone() -> bool:
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_the_job_starts_ray_decodes_and_leaves_a_table(tmp_path):
    if not can_be_alone():
        pytest.skip("this system gives users no namespaces of their own")
    stubs = tmp_path / "bin"
    stubs.mkdir()
    srun = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    for name, text in {"srun": srun, "scontrol": "#!/bin/bash\necho 127.0.0.1\n"}.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "ADADECODE_VENV": sys.prefix,
    }
    out = tmp_path / "out"
    run = ["--task", "demo-math", "--limit", "2", "--methods", "vanilla,adadecode", "--max-new-tokens", "16"]
    job = ["bash", str(ROOT / "cluster" / "slurm" / "eval.sbatch"), *run, "--workers", "1", "--out", str(out)]
    alone = [*ALONE, sys.executable, "-c", LOOPBACK_UP, *job]
    done = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parity 2/2, logits 2/2" in done.stdout
    assert read_run(out)["status"] == "complete"
    again = subprocess.run([*alone, "--gamma", "7"], env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2, "a user's mistake, and not Ray's 0 or 1"
    assert "--gamma" in again.stderr
