"""What `pip install adadecode` brings: every file of the packages, found where the program looks for it."""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

from adadecode.demo import HEADS_DIR, MODEL_DIR, POLICY_FILE, PROMPTS_DIR

ROOT = Path(__file__).parents[2]
PACKAGES = ("adadecode", "ray_jobs")
READ_BY_THE_BUILD = {"adadecode/version.py", "pyproject.toml", "README.md", "LICENSE"}


def files_of_the_packages() -> set[str]:
    found = (file for package in PACKAGES for file in (ROOT / package).rglob("*"))
    return {
        file.relative_to(ROOT).as_posix()
        for file in found
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }


def setuptools_version() -> int:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


@pytest.mark.skipif(setuptools_version() < 77, reason="the build in pyproject.toml needs setuptools 77")
def test_the_wheel_holds_every_file_of_the_packages(tmp_path):
    """Built without a network, from empty files where only names count: the demo's weights take seconds to compress."""
    source = tmp_path / "source"
    for name in files_of_the_packages() | READ_BY_THE_BUILD:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if name in READ_BY_THE_BUILD:
            shutil.copy(ROOT / name, source / name)
        else:
            (source / name).touch()
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == files_of_the_packages()
    for kind in (
        "py.typed",
        "kernels/native.cpp",
        "kernels/draw.h",
        "recipes/demo.yaml",
        "recipes/ablation.yaml",
        "demo/policy.yaml",
    ):
        assert f"adadecode/{kind}" in held


def test_the_files_that_are_no_code_are_found_as_resources():
    package = resources.files("adadecode")
    for name in ("py.typed", "kernels/native.cpp", "kernels/draw.h", "recipes/demo.yaml", "recipes/ablation.yaml"):
        assert package.joinpath(name).is_file(), name


def test_the_demos_assets_are_where_their_paths_say():
    for folder, name in ((MODEL_DIR, "model.safetensors"), (MODEL_DIR, "tokenizer.json"), (PROMPTS_DIR, "math.jsonl")):
        assert (folder / name).is_file()
    for domain in ("math", "code"):
        assert (HEADS_DIR / domain / "exit_heads.safetensors").is_file()
    assert POLICY_FILE.is_file()
