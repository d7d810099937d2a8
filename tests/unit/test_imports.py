"""The house, read from the source: who may import whom, no circles, no room too large, as a test."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file.relative_to(ROOT) for top in ("adadecode", "ray_jobs") for file in (ROOT / top).rglob("*.py"))

# Where each heavy or framework package may be imported; what only type checkers read does not count.
ALLOWED = {
    "ray": ("ray_jobs/",),
    "click": ("adadecode/cli/", "adadecode/recipes/"),
    "transformers": (
        "adadecode/model/",
        "adadecode/training/",
        "adadecode/recipes/",
        "adadecode/engine/transformers.py",
        "adadecode/bench/synthetic.py",
    ),
    "huggingface_hub": ("adadecode/model/",),
    "datasets": ("adadecode/tasks/", "adadecode/recipes/"),
    "httpx2": ("adadecode/certify/",),
    "matplotlib": ("adadecode/training/",),
    "rouge_score": ("adadecode/scoring/rouge.py",),
    "scipy": ("adadecode/report/", "adadecode/tuning/"),
    "pyarrow": (
        "adadecode/report/",
        "adadecode/runs/",
        "adadecode/evaluation/",
        "adadecode/certify/",
        "adadecode/comparison/",
        "adadecode/page/",
        "adadecode/tasks/",
        "adadecode/training/",
        "adadecode/tuning/",
        "adadecode/bench/",
    ),
    "torch": (
        "adadecode/kernels/",
        "adadecode/model/",
        "adadecode/engine/",
        "adadecode/training/",
        "adadecode/evaluation/",
        "adadecode/bench/",
        "adadecode/tuning/",
        "adadecode/recipes/",
        "adadecode/doctor/",
    ),
}

# The rooms of the house, the lowest first, and the rooms each may import. What is not named here is an arrow up.
LEAVES = {
    "version",
    "errors",
    "records",
    "methods",
    "demo",
    "published",
    "printable",
    "files",
    "provenance",
    "settings",
    "stopwatch",
}
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "errors": set(),
    "records": set(),
    "methods": set(),
    "published": set(),
    "demo": {"published"},
    "printable": set(),
    "stopwatch": set(),
    "files": {"errors"},
    "provenance": {"version", "files"},
    "settings": {"errors", "methods", "demo", "published", "files", "printable"},
    "kernels": LEAVES,
    "model": LEAVES | {"kernels"},
    "engine": LEAVES | {"kernels", "model"},
    "scoring": LEAVES,
    "tasks": LEAVES | {"scoring"},
    "report": LEAVES,
    "runs": LEAVES | {"scoring", "tasks", "report"},
    "evaluation": LEAVES | {"kernels", "model", "engine", "tasks", "report", "runs"},
    "certify": LEAVES | {"tasks", "report", "runs", "evaluation"},
    "comparison": LEAVES | {"report", "runs", "certify"},
    "page": LEAVES | {"model", "report", "runs", "certify", "comparison"},
    "bench": LEAVES | {"kernels", "model", "engine", "tasks", "report", "evaluation"},
    "training": LEAVES | {"kernels", "model", "engine", "tasks", "report"},
    "tuning": LEAVES | {"kernels", "model", "engine", "tasks", "report", "evaluation", "bench"},
    "doctor": LEAVES | {"kernels", "model", "engine", "tasks", "report", "runs", "evaluation"},
    "ray_jobs": LEAVES | {"model", "tasks", "runs", "evaluation", "certify", "training", "doctor"},
    "language_model": LEAVES | {"model", "engine", "tasks", "report", "evaluation"},
    "api": LEAVES
    | {
        "model",
        "engine",
        "scoring",
        "tasks",
        "report",
        "runs",
        "evaluation",
        "certify",
        "bench",
        "training",
        "tuning",
        "doctor",
        "ray_jobs",
    },
    "recipes": LEAVES | {"model", "training", "tuning", "api"},
    "cli": LEAVES
    | {
        "language_model",
        "scoring",
        "tasks",
        "report",
        "runs",
        "evaluation",
        "certify",
        "comparison",
        "page",
        "bench",
        "training",
        "tuning",
        "doctor",
        "ray_jobs",
        "api",
    },
}
LARGEST_SHARE = 0.15  # of the lines, in one room
LONGEST_FILE = 300
LONG_FILES = {"adadecode/kernels/native.cpp", "adadecode/kernels/draw.h"}  # one translation unit, compiled at first use


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
    assert (part("adadecode.model.load.load_model"), part("adadecode.cli.main"), part("ray")) == (
        "model",
        "cli",
        "",
    )


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_only_where_it_lives(package):
    users = [
        file.as_posix()
        for file in FILES
        if any(name.split(".")[0] == package for name in imports_of(file, types_too=False))
    ]
    assert users, f"nobody imports {package}: the table is out of date"
    assert [user for user in users if not user.startswith(ALLOWED[package])] == []


def room(file: Path) -> str:
    """The room a file is in: its folder below adadecode/, itself where it has none, or `ray_jobs`."""
    return file.parts[0] if file.parts[0] == "ray_jobs" else file.parts[1].removesuffix(".py")


def test_every_room_is_on_the_plan():
    rooms = {room(file) for file in FILES} - {"__init__", "__main__"}
    assert rooms == set(MAY_IMPORT)
    assert all(below <= set(MAY_IMPORT) for below in MAY_IMPORT.values())


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_no_arrow_points_up(name):
    for file in FILES:
        if room(file) == name:
            taken = {part(imported) for imported in imports_of(file)} - {"", name}
            assert taken <= MAY_IMPORT[name], file


def test_the_plan_has_no_circle():
    """So `a room above` means something."""
    order = list(MAY_IMPORT)
    for name, below in MAY_IMPORT.items():
        if name not in LEAVES:
            assert max(order.index(lower) for lower in below) < order.index(name), name


def test_no_files_import_each_other_in_a_circle():
    modules = {file.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): file for file in FILES}
    arrows = {
        name: {found for imported in imports_of(file) if (found := owner(imported, modules)) not in (None, name)}
        for name, file in modules.items()
    }
    while arrows:  # take away what imports nothing that is left; what remains stands in circles
        done = {name for name, taken in arrows.items() if not taken & arrows.keys()}
        assert done, {name: sorted(taken & arrows.keys()) for name, taken in arrows.items()}
        arrows = {name: taken for name, taken in arrows.items() if name not in done}


def owner(imported: str, modules: Mapping[str, Path]) -> str | None:
    """The module that defines the imported name `a.b.c`: the longest part of it that is one; None outside the program."""
    while imported and imported not in modules:
        imported = imported.rpartition(".")[0]
    return imported or None


def test_no_room_is_a_hall_and_no_file_a_scroll():
    sources = [
        *FILES,
        *(file.relative_to(ROOT) for file in (ROOT / "adadecode").rglob("*.[ch]*") if file.suffix in (".cpp", ".h")),
    ]
    num_lines = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in sources}
    of_room = Counter[str]()
    for file, lines in num_lines.items():
        of_room[room(file)] += lines
    assert {name: n for name, n in of_room.items() if n > LARGEST_SHARE * of_room.total()} == {}
    long = {file.as_posix() for file, lines in num_lines.items() if lines > LONGEST_FILE}
    assert long == LONG_FILES


def test_only_what_runs_a_command_imports_ray_jobs():
    users = {file.as_posix() for file in FILES if any(part(name) == "ray_jobs" for name in imports_of(file))}
    above = ("ray_jobs/", "adadecode/api.py", "adadecode/cli/")
    assert {user for user in users if not user.startswith(above)} == set()


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_program_loads_no_heavy_package():
    code = "import sys, adadecode, adadecode.cli.main; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run_python(code).split()}
    heavy = {"torch", "transformers", "huggingface_hub", "ray", "datasets", "pyarrow", "scipy", "numpy", "ray_jobs"}
    assert not loaded & heavy


@pytest.mark.parametrize("module", ["adadecode.runs.run", "adadecode.runs.result", "adadecode.report.tables"])
def test_reading_and_judging_a_run_loads_no_engine(module):
    """`report` and `verify` are for machines that decode nothing."""
    loaded = {name.split(".")[0] for name in run_python(f"import sys, {module}; print(*sys.modules)").split()}
    assert not loaded & {"torch", "transformers", "ray", "datasets"}


def test_a_driver_on_ray_loads_no_engine_and_no_statistics_before_its_actors_are_asked_for():
    """They take seconds, and the actors load the engine anyway, each for itself."""
    modules = ("adadecode.api", "adadecode.runs.run", "adadecode.cli.watch", "adadecode.evaluation.progress")
    needed = ", ".join([*modules, *imported_by_a_run_on_ray()])
    loaded = {name.split(".")[0] for name in run_python(f"import sys, {needed}; print(*sys.modules)").split()}
    assert "ray" in loaded
    assert not loaded & {"torch", "transformers", "scipy", "datasets"}


def imported_by_a_run_on_ray() -> set[str]:
    """The modules of ray_jobs that `adadecode.api` imports to run an evaluation."""
    tree = ast.parse((ROOT / "adadecode" / "api.py").read_text(encoding="utf-8"))
    (execute,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_execute")
    names = {name.rpartition(".")[0] for name in imports(execute) if part(name) == "ray_jobs"}
    assert names, "nothing of Ray's is imported there any more"
    return names


def test_a_local_run_loads_no_ray(tiny, tmp_path):
    code = """
import sys
from adadecode.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0, ended.code
assert "torch" in sys.modules
print("LOADED", *(name for name in sys.modules if name.split(".")[0] in ("ray", "ray_jobs", "datasets")))
"""
    flags = tiny.flags(limit=1, max_new_tokens=3)
    assert run_python(code, "eval", "--local", *flags, "--out", str(tmp_path / "run")).endswith("LOADED\n")
