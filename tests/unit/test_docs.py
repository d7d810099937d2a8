"""The documentation and the project's own facts, held against the code; `make docs` checks the links of the site."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import adadecode
from adadecode import errors
from tests.command_lines import FENCED_BLOCK

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(ROOT / folder / "README.md" for folder in ("cluster", "results", "results/reference")),
    ]
)
LONGEST_RECORD = 20  # lines: half a page


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks marked `language`; `{toctree}` is one too."""
    text = path.read_text(encoding="utf-8").replace("```{toctree}", "```toctree")
    return [block for found, block in FENCED_BLOCK.findall(text) if found == language]


def table(path: Path, heading: str) -> list[str]:
    """The first cells of the rows of the table after `heading`, without their marks."""
    return [first for first, *_ in rows_of_table(path, heading)]


def rows_of_table(path: Path, heading: str) -> list[list[str]]:
    """The cells of the rows of the table after `heading`."""
    text = path.read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[0].splitlines()[2:]
    return [[part.strip() for part in row.split("|")[1:-1]] for row in rows]


def contents(index: Path) -> list[Path]:
    """The pages that `index` lists, and those that they list, in order."""
    found = []
    for block in blocks(index, "toctree"):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                page = (index.parent / f"{line}.md").resolve()
                found += [page, *(contents(page) if page.name == "index.md" else [])]
    return found


def test_the_site_lists_every_page_once():
    listed = contents(DOCS / "index.md")
    assert len(listed) == len(set(listed))
    assert sorted(listed) == [page for page in PAGES if page != DOCS / "index.md"]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_file_of_ours_named_in_the_text_exists(path):
    text = FENCED_BLOCK.sub("", path.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:adadecode|ray_jobs|tests|cluster|docs)/[\w./-]*)`", text)
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_python_block_is_python(path):
    for block in blocks(path, "python"):
        ast.parse(block)


def test_the_methods_page_has_a_row_for_each_method_with_its_contract_and_settings():
    from adadecode.methods import METHODS
    from adadecode.settings import RivalSettings, flag_name

    flags = {name: flag_name(name, field) for name, field in RivalSettings.model_fields.items()}
    told = [
        (name, contract.removeprefix("the "), {flag for flag in flags.values() if f"`{flag}`" in settings})
        for name, _, contract, settings, _ in rows_of_table(DOCS / "methods.md", "## Methods")
    ]
    assert told == [
        (f"`{name}`", method.owes, {flags[setting] for setting in method.reads_settings})
        for name, method in METHODS.items()
    ]


def test_the_operations_page_has_every_exit_code():
    codes = sorted({value for key, value in vars(errors).items() if key.startswith("EXIT_")})
    assert table(DOCS / "operations.md", "## Exit codes") == [str(code) for code in codes]


def test_the_architecture_page_has_a_row_for_each_room():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## Arrows")[0]
    rooms = {path.parent if path.name == "__init__.py" else path for path in (ROOT / "adadecode").glob("*/__init__.py")}
    assert [name(room) for room in sorted(rooms) if f"`{name(room)}/`" not in text] == []


def test_the_library_page_has_every_public_name():
    cells = " ".join(table(DOCS / "library.md", "<!-- public names -->"))
    named = [name_of[1] for name_of in re.finditer(r"`(\w+)(?:\([^`]*\))?`", cells)]
    assert sorted(named) == sorted(public for public in adadecode.__all__ if not public.startswith("__"))


def test_decision_records_are_numbered_short_and_listed_in_order():
    records = sorted(path for path in (DOCS / "adr").glob("*.md") if path.name != "index.md")
    assert records == contents(DOCS / "adr" / "index.md")
    for number, path in enumerate(records, start=1):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert path.name.startswith(f"{number:04d}-")
        assert lines[0].startswith(f"# {number}. ")
        assert len(lines) <= LONGEST_RECORD, path


def test_changelog_and_citation_name_the_version_and_its_date():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## (\S+) - (\S+)$", text, flags=re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert version == citation["version"]
    assert adadecode.__version__ == version or (".dev" in adadecode.__version__ and adadecode.__version__ > version)
    assert date == str(citation["date-released"])


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_the_workflow_does_what_a_change_must_pass():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands[0] == ".ci/run"


def test_every_tool_and_docs_package_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *(spec for group in groups for spec in group)]
    assert [spec for spec in wanted if normal(re.match(r"[\w.-]+", spec)[0]) not in pinned] == []


def normal(package: str) -> str:
    """The name of a package as an index compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()
