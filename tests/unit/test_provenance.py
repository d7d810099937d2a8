"""What is stored of where results come from."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from adadecode import __version__, provenance

ROOT = Path(__file__).parents[2]


def test_provenance_names_versions_revision_and_platform():
    facts = provenance.provenance()
    assert list(facts) == ["adadecode", "packages", "platform", "code_hash", "git_sha", "git_dirty"]
    assert facts["adadecode"] == __version__
    assert facts["packages"]["torch"] == importlib.metadata.version("torch")
    assert facts["git_sha"] is None or re.fullmatch("[0-9a-f]{40}", facts["git_sha"])
    assert (facts["git_dirty"] is None) == (facts["git_sha"] is None)


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert list(provenance.provenance()["packages"]) == ["torch"]


def test_a_copy_that_git_does_not_track_has_no_revision(tmp_path):
    (tmp_path / "adadecode").mkdir()
    for name in ("__init__.py", "errors.py", "files.py", "provenance.py", "version.py"):
        (tmp_path / "adadecode" / name).write_bytes((ROOT / "adadecode" / name).read_bytes())
    code = (
        "from adadecode.provenance import provenance; facts = provenance(); print(facts['git_sha'], facts['git_dirty'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


def test_the_processor_has_a_name_and_a_driver_that_nobody_tells_is_none(monkeypatch):
    assert provenance.cpu_name()
    monkeypatch.setenv("PATH", "")
    assert provenance.gpu_driver() is None


def test_the_hash_of_the_code_is_of_what_decodes_and_of_nothing_else(tmp_path):
    def hash_of(changed: str | None = None) -> str:
        copy = tmp_path / (changed or "as it is").replace("/", "-") / "adadecode"
        shutil.copytree(ROOT / "adadecode", copy, ignore=shutil.ignore_patterns("__pycache__", "demo", "recipes"))
        if changed is not None:
            with (copy / changed).open("a", encoding="utf-8") as file:
                file.write("\n")
        code = "from adadecode.provenance import code_hash; print(code_hash())"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=copy.parent, capture_output=True, text=True, check=True).stdout.strip()

    same = hash_of()
    assert same == provenance.code_hash()
    others = [
        hash_of(name)
        for name in ("engine/generate.py", "kernels/native.cpp", "kernels/draw.h", "kernels/step.py", "model/load.py")
    ]
    assert len({same, *others}) == 6
    assert hash_of("report/tables.py") == hash_of("kernels/new.txt") == same
