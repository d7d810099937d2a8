"""What is said of the machine, with a fault planted for each line."""

import pytest
import torch

from adadecode.doctor.checks import CHECKS, Check, examine
from adadecode.doctor.finding import Finding, exit_code
from adadecode.doctor.machine import (
    Gpu,
    gpu_findings,
    package_findings,
    processor_finding,
    runs_on,
    usable_cores,
)
from adadecode.doctor.memory import free_host, memory_finding
from adadecode.doctor.subject import Subject
from adadecode.errors import UsageError
from adadecode.kernels.library import load_library
from adadecode.settings import EvalConfig

H100 = Gpu("NVIDIA H100", 80 * 10**9, 79 * 10**9, (9, 0))
P100 = Gpu("Tesla P100", 16 * 10**9, 16 * 10**9, (6, 0))
T4 = Gpu("Tesla T4", 16 * 10**9, 15 * 10**9, (7, 5))
ARCHS = ["sm_75", "sm_80", "sm_90"]
CUDA = EvalConfig(device="cuda")


def the_only(findings) -> Finding:
    """The one finding that is not ok."""
    (found,) = [finding for finding in findings if finding.status != "ok"]
    return found


@pytest.mark.parametrize(
    ("statuses", "code"),
    [([], 0), (["ok"], 0), (["ok", "not tried"], 0), (["ok", "warning"], 1), (["will fail", "warning", "ok"], 2)],
)
def test_the_worst_line_is_the_exit_code(statuses, code):
    assert exit_code([Finding("x", status, "found") for status in statuses]) == code


def test_a_finding_is_one_line_with_the_remedy_whatever_an_error_said():
    assert Finding.warning("gpus", "none", "buy one").line() == "warning    gpus: none: buy one"
    assert Finding.of_error("data", UsageError("--limit 0: give 1")).line() == "will fail  data: --limit 0: give 1"
    line = Finding.of_error("rows", RuntimeError("CUDA error:\n  illegal")).line()
    assert line == "will fail  rows: RuntimeError: CUDA error: illegal: mend that first: a run would meet it too"


def test_what_needs_a_check_that_fails_is_not_tried_and_the_rest_is():
    def fails(_: Subject):
        raise UsageError("no")

    def good(_: Subject):
        yield Finding.ok("good", "fine")

    checks = [
        Check("a", fails, "driver"),
        Check("b", good, "driver", ("a",)),
        Check("c", good, "driver", ("b",)),
        Check("d", good, "driver"),
    ]
    found = list(examine(Subject(EvalConfig(), "x"), checks))
    assert [finding.status for finding in found] == ["will fail", "not tried", "not tried", "ok"]
    assert found[2].found == "it needs b"


def test_a_check_comes_after_those_that_it_needs():
    for idx, check in enumerate(CHECKS):
        assert set(check.after) <= {earlier.name for earlier in CHECKS[:idx]}
        assert all(earlier.where == check.where for earlier in CHECKS if earlier.name in check.after)


@pytest.mark.parametrize(
    ("config", "gpus", "driver", "cuda", "line"),
    [
        (CUDA, [], "570.1", None, f"torch {torch.__version__} was built without CUDA: install a build with CUDA"),
        (CUDA, [], None, "12.8", "nvidia-smi finds no NVIDIA driver: install the driver"),
        (CUDA, [], "450.1", "12.8", "torch for CUDA 12.8 sees no GPU, and the driver is 450.1: update the driver"),
        (CUDA, [P100], "570.1", "12.8", "Tesla P100 has compute capability 6.0, and this torch was built for sm_75"),
        (
            CUDA,
            [T4],
            "570.1",
            "12.8",
            "Tesla T4 has compute capability 7.5, which computes bfloat16 slowly: give --dtype",
        ),
        (CUDA, [H100, T4], "570.1", "12.8", "they are of several kinds (NVIDIA H100, Tesla T4)"),
        (
            EvalConfig(device="cuda", gpus_per_worker=2),
            [H100],
            "570.1",
            "12.8",
            "1 seen, and --gpus-per-worker 2 takes more: give 1..1",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_line_with_the_remedy(config, gpus, driver, cuda, line):
    found = [finding for finding in gpu_findings(config, gpus, driver, cuda, ARCHS) if finding.status != "ok"]
    assert line in found[0].text()
    assert found[0].status == ("warning" if "several" in line or "slowly" in line else "will fail")


def test_gpus_are_said_with_memory_and_capability_and_a_cpu_needs_none():
    (found,) = gpu_findings(CUDA, [H100, H100], "570.1", "12.8", ARCHS)
    assert "NVIDIA H100 (80.0 GB, 79.0 GB free, compute capability 9.0); NVIDIA H100" in found.line()
    (none,) = gpu_findings(EvalConfig(), [], None, None, [])
    assert none.line() == "ok         gpus: none seen, and --device cpu needs none"


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 6), True),
        ("sm_90", (8, 9), False),
        ("sm_80", (9, 0), False),
        ("compute_80", (9, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_120", (12, 0), True),
        ("gfx90a", (9, 0), False),
    ],
)
def test_code_runs_within_a_generation_and_intermediate_code_from_its_own_on(arch, capability, runs):
    assert runs_on(arch, capability) is runs


def test_a_missing_package_will_fail_and_another_version_is_a_warning():
    wanted = ["torch>=99", "no-such-package-anywhere>=1", "click>=8", 'never; extra == "gguf"']
    torch_line, missing = package_findings(wanted)
    assert torch_line.status == "warning"
    assert torch_line.remedy == "pip install 'torch>=99'"
    assert missing.line().startswith("will fail  packages: no-such-package-anywhere is not installed: pip install")


def test_more_threads_than_cores_are_a_warning():
    assert processor_finding(EvalConfig(threads=2), 1, 2).status == "ok"
    assert "give --threads 1" in processor_finding(EvalConfig(threads=2), 2, 2).remedy
    assert processor_finding(EvalConfig(threads=2, device="cuda"), 2, 2).status == "ok"


def test_a_containers_quota_counts_as_its_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    all_cores = usable_cores(quota)
    quota.write_text("max 100000\n")
    assert usable_cores(quota) == all_cores
    quota.write_text("100000 100000\n")
    assert usable_cores(quota) == 1


def test_too_little_memory_is_told_with_what_takes_it():
    needs = {"weights": 16 * 10**9, "cache": 10**9}
    assert memory_finding("memory", needs, 1, 40 * 10**9).status == "ok"
    assert memory_finding("memory", needs, 1, 18 * 10**9).status == "warning"
    found = memory_finding("memory", needs, 2, 20 * 10**9)
    assert found.status == "will fail"
    assert found.found == "about 34.0 GB needed (2 workers of weights 16.0 GB, cache 1.0 GB), 20.0 GB free"
    assert found.remedy.startswith("fewer --workers, or try a smaller --dtype")


def test_free_memory_is_the_less_of_the_systems_and_the_containers(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert free_host(meminfo, tmp_path) == 4000 * 1024
    limits = {"memory.max": "2048000", "memory.current": "1024000", "memory.stat": "inactive_file 24000"}
    for name, content in limits.items():
        (tmp_path / name).write_text(content)
    assert free_host(meminfo, tmp_path) == 1_048_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host(meminfo, tmp_path) == 4000 * 1024
    assert free_host(tmp_path / "none", tmp_path) is None


def test_a_machine_without_a_compiler_is_slower_and_said_so(monkeypatch, tmp_path):
    load_library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    (kernels,) = [check for check in CHECKS if check.name == "kernels"]
    try:
        found = the_only(examine(Subject(EvalConfig(), "x"), [Check("kernels", kernels.look, "worker")]))
        assert found.status == "warning"
        assert "eager, because there is no C++ compiler: install one such as g++, or name it in CXX" in found.text()
        asked = examine(Subject(EvalConfig(kernels="native"), "x"), [Check("kernels", kernels.look, "worker")])
        assert the_only(asked).line().startswith("will fail  kernels: --kernels native: there is no C++ compiler")
    finally:
        load_library.cache_clear()
