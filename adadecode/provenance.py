"""Where results come from: the versions and the revision of the code, the processor and the GPU's driver."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from adadecode.files import short_hash
from adadecode.version import __version__

ROOMS_THAT_DECODE = ("engine", "kernels", "model")
PACKAGES = ("torch", "transformers", "ray", "datasets", "pyarrow", "tokenizers", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """Versions, git revision and platform of the process that calls, as `run.json` stores them."""
    sha = git_sha()
    return {
        "adadecode": __version__,
        "packages": package_versions(),
        "platform": platform.platform(),
        "code_hash": code_hash(),
        "git_sha": sha,
        "git_dirty": None if sha is None else bool(_git("status", "--porcelain")),
    }


def package_versions() -> dict[str, str]:
    """The versions of the packages on which results may depend, of those that are installed."""
    versions = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


@functools.cache
def code_hash() -> str:
    """A hash of the installed source files that decode: with another one tokens or speeds may be others.

    The revision cannot say that: an installed package has none, and a changed page of documentation gives another.
    """
    package = Path(__file__).resolve().parent
    parts: list[str | bytes] = []
    for file in sorted(file for room in ROOMS_THAT_DECODE for file in (package / room).rglob("*")):
        if file.suffix in (".py", ".cpp", ".h"):
            parts += [file.relative_to(package).as_posix(), file.read_bytes()]
    return short_hash(*parts)


@functools.cache
def git_sha() -> str | None:
    """The revision of the checkout this package runs from; None when git does not track its files."""
    return _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", Path(__file__).name) else None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_driver() -> str | None:
    """The version of the NVIDIA driver; None when nvidia-smi does not tell."""
    told = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return told.split()[0] if told else None


def gpu_names() -> tuple[str, ...]:
    """The kinds of NVIDIA GPUs of this machine, by name; none where nvidia-smi does not tell."""
    told = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return tuple(sorted({line.strip() for line in told.splitlines()})) if told else ()


def _version(package: str) -> str | None:
    """The version of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """The output of git in this file's folder; None when it fails."""
    return _output("git", "-C", str(Path(__file__).resolve().parent), *arguments)


def _output(*command: str) -> str | None:
    """What `command` prints; None when it cannot be run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
