import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from adadecode import scoring
from adadecode.report.schema import PLAN, REJECTED, SAMPLES, SCORES, SUMMARY, SWEEP, VERIFY
from adadecode.tasks import TASKS

README = Path(__file__).parents[3] / "results" / "README.md"


@pytest.mark.parametrize(
    ("section", "schema"),
    [("samples", SAMPLES), ("plan", PLAN), ("verify", VERIFY), ("summary", SUMMARY), ("scores", SCORES)],
)
def test_results_readme_documents_every_column_in_order(section, schema):
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    text = text.split("\n| scorer |")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    assert [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)] == schema.names


@pytest.mark.parametrize(
    ("section", "schema"), [("samples", SAMPLES), ("plan", PLAN), ("summary", SUMMARY), ("scores", SCORES)]
)
def test_results_readme_names_each_columns_type(section, schema):
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text.split("\n| scorer |")[0], flags=re.MULTILINE))
    short = {
        str(REJECTED): "list&lt;struct&gt;",
        "double": "float64",
        "list<item: int32>": "list&lt;int32&gt;",
        "list<item: float>": "list&lt;float32&gt;",
    }
    assert documented == {field.name: short.get(str(field.type), str(field.type).partition("[")[0]) for field in schema}


def test_results_readme_says_what_a_sweep_adds_to_the_summary():
    assert SWEEP.names == ["cell", *SUMMARY.names]
    text = README.read_text(encoding="utf-8").split("\n## sweep\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| (\S+) \|", text, flags=re.MULTILINE) == [("cell", "string")]


def test_results_readme_has_a_row_for_each_scorer_with_its_metrics_and_tasks():
    text = README.read_text(encoding="utf-8").split("\n| scorer |")[1].split("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", text, re.M)
    tasks, metrics = ({name: re.findall(r"`([^`]+)`", row[idx]) for name, *row in found} for idx in (0, 1))
    homes = {info.name for info in pkgutil.iter_modules(scoring.__path__)}
    scorers = [vars(importlib.import_module(f"adadecode.scoring.{home}")).get("SCORER") for home in sorted(homes)]
    assert {
        scorer.name: set(scorer.metrics) - set(metrics.get(scorer.name, ())) for scorer in filter(None, scorers)
    } == {name: set() for name in metrics}
    scored = {task.name: task.scorer.name for task in TASKS.values() if task.scorer is not None}
    assert {task: name for name, named in tasks.items() for task in named} == scored
