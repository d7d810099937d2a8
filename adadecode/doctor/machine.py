"""What the machine is: Python and its packages, the processor, GPUs, and who computes decode steps."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from adadecode.doctor.finding import Finding
from adadecode.doctor.subject import Subject
from adadecode.kernels.choose import PLAIN_KERNELS
from adadecode.kernels.library import cpp_compiler
from adadecode.printable import on_one_line
from adadecode.provenance import PACKAGES, cpu_name, gpu_driver, provenance
from adadecode.settings import EvalConfig
from adadecode.version import __version__

BFLOAT16_FROM = (8, 0)  # the compute capability that multiplies bfloat16 itself
SLOWER = "outputs are as exact, and decoding is slower until that is mended"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class Gpu(NamedTuple):
    """A GPU as torch sees it: memory in bytes, compute capability."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]

    def text(self) -> str:
        major, minor = self.capability
        return f"{self.name} ({gb(self.total)}, {gb(self.free)} free, compute capability {major}.{minor})"


def gb(num_bytes: float) -> str:
    """`num_bytes` as a person reads it."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def python(_: Subject) -> Iterator[Finding]:
    """The interpreter and the system it runs on."""
    yield Finding.ok("python", f"{platform.python_version()} on {platform.platform()}, adadecode {__version__}")


def packages(_: Subject) -> Iterator[Finding]:
    """The packages that this one needs, in the versions that it asks for."""
    try:
        wanted = importlib.metadata.requires("adadecode") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is run without being installed
        wanted = []
    problems = list(package_findings(wanted))
    yield from problems
    if not problems:
        found = provenance()["packages"]
        yield Finding.ok("packages", ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found))


def package_findings(wanted: Iterable[str]) -> Iterator[Finding]:
    """The packages that are missing, or are others than those `wanted`, as pip writes them."""
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        install = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding.fails("packages", f"{requirement.name} is not installed", install)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found = f"{requirement.name} is {version}, and {requirement.specifier} was tested"
            yield Finding.warning("packages", found, install)


def processor(subject: Subject) -> Iterator[Finding]:
    """The processor, and whether it has a core for every thread that will compute."""
    yield processor_finding(subject.config, subject.num_workers, usable_cores())


def processor_finding(config: EvalConfig, num_workers: int, cores: int) -> Finding:
    """What `num_workers` workers of `config` find on a machine of which they may use `cores` cores."""
    threads = config.threads or max(1, cores // num_workers)
    found = f"{cpu_name()}, {cores} cores to use, {num_workers} x {threads} threads"
    if config.device == "cpu" and threads * num_workers > cores:
        remedy = f"give --threads {max(1, cores // num_workers)}, or fewer --workers"
        return Finding.warning("processor", f"{found}: threads will wait for each other, and speeds be theirs", remedy)
    return Finding.ok("processor", found)


def usable_cores(quota: Path = CPU_QUOTA) -> int:
    """The cores that this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, _, period = quota.read_text().partition(" ")
        return cores if most == "max" else max(1, min(cores, int(most) // int(period)))
    except (OSError, ValueError):
        return cores


def gpus(subject: Subject) -> Iterator[Finding]:
    """The GPUs, and whether torch can compute on them."""
    found = seen_gpus()
    archs = torch.cuda.get_arch_list() if found else []
    yield from gpu_findings(subject.config, found, gpu_driver(), torch.version.cuda, archs)


def num_gpus() -> int:
    """How many GPUs torch sees, told without taking any of their memory; a full one counts too."""
    return torch.cuda.device_count()


def seen_gpus() -> list[Gpu]:
    """The GPUs that torch sees."""
    if not torch.cuda.is_available():
        return []
    found = []
    for idx in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(idx)
        found.append(Gpu(torch.cuda.get_device_name(idx), total, free, torch.cuda.get_device_capability(idx)))
    return found


def gpu_findings(
    config: EvalConfig, found: Sequence[Gpu], driver: str | None, cuda: str | None, archs: Sequence[str]
) -> Iterator[Finding]:
    """What GPUs `found`, their `driver`, and torch's own `cuda` and `archs` mean to a run of `config`."""
    if config.device == "cpu":
        there = f"{len(found)} seen, and --device cpu uses none" if found else "none seen, and --device cpu needs none"
        yield Finding.ok("gpus", there)
        return
    if not found:
        yield Finding.fails("gpus", *_why_none(driver, cuda))
        return
    yield Finding.ok(
        "gpus", f"{'; '.join(gpu.text() for gpu in found)}; driver {driver or 'unknown'}, torch for CUDA {cuda}"
    )
    if config.gpus_per_worker > len(found):
        what = f"{len(found)} seen, and --gpus-per-worker {config.gpus_per_worker} takes more"
        yield Finding.fails("gpus", what, f"give 1..{len(found)}, or a machine with more")
    names = sorted({gpu.name for gpu in found})
    if len(names) > 1:
        what = f"they are of several kinds ({', '.join(names)}), and speeds are averaged over workers"
        yield Finding.warning("gpus", what, "set CUDA_VISIBLE_DEVICES to those of one kind")
    for gpu in dict.fromkeys(gpu._replace(free=0) for gpu in found):
        text = f"{gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        if archs and not any(runs_on(arch, gpu.capability) for arch in archs):
            what = f"{text}, and this torch was built for {', '.join(archs)}"
            yield Finding.fails("gpus", what, "install a torch that was built for it, or use another GPU")
        elif config.dtype == "bfloat16" and gpu.capability < BFLOAT16_FROM:
            yield Finding.warning("gpus", f"{text}, which computes bfloat16 slowly", "give --dtype float16 or float32")


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code that was built for `arch`, such as sm_90 or compute_90, runs on a GPU of `capability`.

    Machine code does within a generation, from its own capability on; intermediate code (PTX) from it on everywhere.
    """
    kind, _, number = arch.partition("_")
    digits = "".join(digit for digit in number if digit.isdigit())
    if not digits:
        return False
    built = (int(digits[:-1]), int(digits[-1]))
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _why_none(driver: str | None, cuda: str | None) -> tuple[str, str]:
    """Why torch sees no GPU, and the remedy."""
    if cuda is None:
        return f"torch {torch.__version__} was built without CUDA", "install a build with CUDA, or use --device cpu"
    if driver is None:
        what = "nvidia-smi finds no NVIDIA driver"
        return what, "install the driver, in a container start it with its GPUs (--gpus all), or use --device cpu"
    what = f"torch for CUDA {cuda} sees no GPU, and the driver is {driver}"
    return what, "update the driver, look at CUDA_VISIBLE_DEVICES, or use --device cpu"


def kernels(subject: Subject) -> Iterator[Finding]:
    """Who computes decode steps here; native kernels are compiled now, where they are not yet."""
    config, chosen = subject.config, subject.chosen_kernels
    if chosen.because is not None:
        yield Finding.warning("kernels", f"{chosen.kernels}, because {chosen.because}", SLOWER)
        return
    by = f", compiled by {compiler_version()}" if chosen.kernels == "native" else ""
    is_graphed = config.device == "cuda" and chosen.kernels not in PLAIN_KERNELS
    as_graphs = ", as CUDA graphs" if is_graphed and chosen.kernels == "compile" else ""
    tried = ", tried when the model is loaded" if is_graphed else ""
    yield Finding.ok("kernels", f"{chosen.kernels}{by}{as_graphs}{tried}")


def compiler_version() -> str:
    """The first line of what the C++ compiler says of itself."""
    words = cpp_compiler()
    try:
        said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True).stdout
        return on_one_line(said.partition("\n")[0])
    except (OSError, subprocess.CalledProcessError):
        return " ".join(words)
