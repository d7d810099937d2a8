"""What every executor shares: preparing a run folder, doing one shard in it, and closing the run."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from adadecode import __version__

PACKAGES = ("torch", "transformers", "ray", "datasets", "pyarrow", "tokenizers", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """Where the code that plans this run comes from: versions, git revision, platform."""
    return {
        "adadecode": __version__,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        "platform": platform.platform(),
        "git_sha": git_sha(),
        "git_dirty": bool(_git("status", "--porcelain")) if git_sha() else None,
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def git_sha() -> str | None:
    """The revision of the checkout this package runs from; None when git does not track its files."""
    return _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", Path(__file__).name) else None


def _git(*arguments: str) -> str | None:
    """The output of git in this file's folder; None when it fails."""
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def gpu_driver() -> str | None:
    """The version of the NVIDIA driver, None when nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
