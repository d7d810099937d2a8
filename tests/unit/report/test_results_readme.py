import importlib
import pkgutil
import re
from pathlib import Path

from adadecode import scoring
from adadecode.tasks import TASKS

README = Path(__file__).parents[3] / "results" / "README.md"


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
