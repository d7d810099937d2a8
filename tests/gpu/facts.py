"""Prints, in Markdown, on what and of which commit the checks of check.sh are; the heading is a name for their folder."""

import platform
import re
from datetime import UTC, datetime

import torch

from adadecode.provenance import cpu_name, gpu_driver, provenance


def main() -> None:
    """Prints the heading and the table."""
    found = provenance()
    sha = found["git_sha"] or "unknown"
    gpus = [torch.cuda.get_device_properties(idx) for idx in range(torch.cuda.device_count())]
    name = re.sub("[^a-z0-9]+", "-", gpus[0].name.lower()).strip("-")
    dirty = ", with changes that are not committed" if found["git_dirty"] else ""
    rows = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": f"{sha}{dirty}",
        "code hash": found["code_hash"],
        "GPU": "; ".join(f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {gpu.major}.{gpu.minor}" for gpu in gpus),
        "driver, CUDA": f"{gpu_driver()}, {torch.version.cuda}",
        "processor": cpu_name(),
        "Python": f"{platform.python_version()} on {found['platform']}",
        "packages": ", ".join(f"{package} {version}" for package, version in found["packages"].items()),
    }
    print(f"# gpu-{name}-{sha[:7]}\n\n| | |\n|---|---|")
    for what, value in rows.items():
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
