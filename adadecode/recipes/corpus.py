"""The texts the demo model learns from: GSM8K's training split and the functions of the Python standard library.

    python -m adadecode.recipes.corpus --model MODEL python-functions.jsonl

writes the functions as prompts that `--task humaneval --data-file python-functions.jsonl` reads, to train heads on.
"""

import ast
import json
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


class Document(NamedTuple):
    """One training text, cut where a prompt ends and the continuation begins."""

    prompt: str
    continuation: str

    @property
    def text(self) -> str:
        return self.prompt + self.continuation


def python_functions(root: Path | None = None) -> list[Document]:
    """Every documented function of the standard library under `root`, dedented, split after its docstring.

    Files are visited in name order, so the list is the same for the same Python version. Duplicates are dropped.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    documents: dict[str, Document] = {}
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts):
            for document in _functions_of(path):
                documents.setdefault(document.text, document)
    return list(documents.values())


def _functions_of(path: Path) -> Iterator[Document]:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None and len(node.body) > 1:
            head_end = node.body[0].end_lineno
            assert head_end is not None, ast.dump(node)
            whole = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).rstrip()
            num_head_lines = head_end - node.lineno + 1
            head = "".join(whole.splitlines(keepends=True)[:num_head_lines])
            if head and whole[len(head) :].strip():
                yield Document(head, whole[len(head) :])


@click.command()
@click.option("--model", required=True, help="Model whose tokens count.")
@click.option("--longest", type=int, default=256, show_default=True, help="Most tokens of a prompt.")
@click.argument("out", type=click.Path(path_type=Path))
def main(model: str, longest: int, out: Path) -> None:
    """Writes the signature and docstring of every such function to OUT, once each, as rows like HumanEval's."""
    from adadecode.model.load import load_model
    from adadecode.settings import ModelSettings

    _, tokenizer = load_model(ModelSettings(model=model))
    prompts = dict.fromkeys(document.prompt for document in python_functions())
    kept = [prompt for prompt in prompts if len(tokenizer(prompt).input_ids) <= longest]
    rows = ({"task_id": f"stdlib/{idx}", "prompt": prompt} for idx, prompt in enumerate(kept))
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    click.echo(f"{out}: {len(kept)} of {len(prompts)} functions")


def gsm8k_documents(path: Path | None) -> list[Document]:
    """GSM8K's training questions with their worked answers as published, from a JSONL file or else from the hub."""
    if path is None:
        import datasets

        rows: Any = datasets.load_dataset("openai/gsm8k", "main", split="train")
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Document(f"Question: {row['question']}\nAnswer:", " " + row["answer"]) for row in rows]


if __name__ == "__main__":
    main()
