"""The texts the demo model learns from: GSM8K's training split and the functions of the Python standard library."""

import ast
import json
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


def gsm8k_documents(path: Path | None) -> list[Document]:
    """GSM8K's training questions with their worked answers as published, from a JSONL file or else from the hub."""
    if path is None:
        import datasets

        rows: Any = datasets.load_dataset("openai/gsm8k", "main", split="train")
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Document(f"Question: {row['question']}\nAnswer:", " " + row["answer"]) for row in rows]
