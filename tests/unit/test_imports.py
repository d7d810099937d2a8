"""Who may import whom, read from the source: the arrows between the folders as a test."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file.relative_to(ROOT) for top in ("adadecode", "ray_jobs") for file in (ROOT / top).rglob("*.py"))

# Where each heavy or framework package may be imported; what only type checkers read does not count.
ALLOWED = {
    "ray": ("ray_jobs/",),
    "click": (
        "adadecode/cli.py",
        "adadecode/cli_evaluate.py",
        "adadecode/cli_flags.py",
        "adadecode/demo/build.py",
        "ray_jobs/",
    ),
    "transformers": ("adadecode/model/", "adadecode/training/", "adadecode/demo/", "adadecode/engine/baselines.py"),
    "datasets": ("adadecode/tasks/", "adadecode/demo/"),
    "matplotlib": ("adadecode/training/",),
    "scipy": ("adadecode/report/", "adadecode/tuning/"),
    "pyarrow": (
        "adadecode/report/",
        "adadecode/evaluation/",
        "adadecode/tasks/",
        "adadecode/training/",
        "adadecode/tuning/",
    ),
    "torch": (
        "adadecode/model/",
        "adadecode/engine/",
        "adadecode/training/",
        "adadecode/evaluation/",
        "adadecode/tuning/",
        "adadecode/demo/build.py",
        "adadecode/demo/pretrain.py",
    ),
}

PARTS = {
    "model",
    "engine",
    "evaluation",
    "tasks",
    "report",
    "training",
    "tuning",
    "demo",
    "cli",
    "cli_evaluate",
    "cli_flags",
    "ray_jobs",
}

# What each part must not import of the others, not even for its types.
FORBIDDEN = {
    "adadecode/errors.py": PARTS,
    "adadecode/records.py": PARTS,
    "adadecode/config.py": PARTS,
    "adadecode/model/": PARTS - {"model", "demo"},
    "adadecode/engine/": PARTS - {"engine", "model"},
    "adadecode/report/": PARTS - {"report"},
    "adadecode/tasks/": PARTS - {"tasks", "demo"},
    "adadecode/training/": {"evaluation", "report", "tuning", "cli", "ray_jobs"},
    "adadecode/tuning/": {"training", "cli", "ray_jobs"},
    "adadecode/evaluation/": {"training", "tuning", "cli", "ray_jobs"},
    "adadecode/demo/": {"evaluation", "report", "cli", "ray_jobs"},
}


def imports(tree: ast.AST, *, types_too: bool = True) -> Iterator[str]:
    """Every name `tree` imports, at any depth, in full: `from a.b import c` gives `a.b.c`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if types_too:
                yield from imports(node)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, types_too=types_too)


def imports_of(file: Path, *, types_too: bool = True) -> list[str]:
    return list(imports(ast.parse((ROOT / file).read_text(encoding="utf-8")), types_too=types_too))


def part(name: str) -> str:
    """The part of the program an imported name is in: `model`, `cli`, ..., `ray_jobs`; empty for other packages."""
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] if top == "adadecode" else "ray_jobs" if top == "ray_jobs" else ""


def test_nested_and_typing_imports_are_seen():
    source = """
import a.b as c
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import only_types
def f():
    try:
        from d import e
    except ImportError:
        import g
"""
    tree = ast.parse(source)
    assert list(imports(tree)) == ["a.b", "typing.TYPE_CHECKING", "only_types", "d.e", "g"]
    assert list(imports(tree, types_too=False)) == ["a.b", "typing.TYPE_CHECKING", "d.e", "g"]
    with pytest.raises(AssertionError, match="relative"):
        list(imports(ast.parse("from . import x")))
    assert (part("adadecode.model.decoder.load_model"), part("adadecode.cli.main"), part("ray")) == ("model", "cli", "")


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_only_where_it_lives(package):
    users = [
        file.as_posix()
        for file in FILES
        if any(name.split(".")[0] == package for name in imports_of(file, types_too=False))
    ]
    assert users, f"nobody imports {package}: the table is out of date"
    assert [user for user in users if not user.startswith(ALLOWED[package])] == []


@pytest.mark.parametrize("where", FORBIDDEN)
def test_no_arrow_points_back(where):
    files = [file for file in FILES if file.as_posix().startswith(where)]
    assert files, f"there is no {where}"
    for file in files:
        parts = {part(name) for name in imports_of(file)} - {""}
        assert not parts & FORBIDDEN[where], file


def test_only_the_command_line_and_ray_jobs_import_ray_jobs():
    users = {file.as_posix() for file in FILES if any(part(name) == "ray_jobs" for name in imports_of(file))}
    assert {user for user in users if not user.startswith("ray_jobs/")} == {
        "adadecode/cli.py",
        "adadecode/cli_evaluate.py",
    }


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_program_loads_no_heavy_package():
    code = "import sys, adadecode, adadecode.cli; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    heavy = {"torch", "transformers", "ray", "datasets", "pyarrow", "scipy", "numpy", "ray_jobs"}
    assert not loaded & heavy


def test_a_local_run_loads_no_ray(tiny, tmp_path):
    code = """
import sys
from adadecode.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0, ended.code
assert "torch" in sys.modules
print("LOADED", *(name for name in sys.modules if name.split(".")[0] in ("ray", "ray_jobs", "datasets")))
"""
    flags = tiny.flags(limit=1, max_new_tokens=3)
    assert run_python(code, "eval", "--local", *flags, "--out", str(tmp_path / "run")).endswith("LOADED\n")
