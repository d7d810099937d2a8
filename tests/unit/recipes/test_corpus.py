"""The demo's training texts: documented functions, split where a prompt ends."""

import ast
from pathlib import Path

import pytest

from adadecode.recipes.corpus import Document, python_functions

MODULE = '''"""A module."""

import os


def add(a, b):
    """The sum of a and b."""
    return a + b


def silent(a):
    return a


def only_documented():
    """Nothing is left to write after this."""


class Box:
    """A box."""

    @property
    def size(self):
        """How much goes in.

        In litres.
        """
        # a comment after the docstring
        return self._size

    def bare(self): return 1
'''

ADD = Document('def add(a, b):\n    """The sum of a and b."""\n', "    return a + b")


@pytest.fixture
def stdlib(tmp_path) -> Path:
    (tmp_path / "module.py").write_text(MODULE)
    return tmp_path


def test_only_functions_with_a_docstring_and_more_are_taken(stdlib):
    documents = python_functions(stdlib)
    assert ADD in documents
    assert [document.prompt.split("(")[0].split()[-1] for document in documents] == ["add", "size"]


def test_a_method_is_dedented_and_split_after_its_docstring(stdlib):
    (size,) = [document for document in python_functions(stdlib) if "size" in document.prompt]
    assert size.prompt == 'def size(self):\n    """How much goes in.\n\n    In litres.\n    """\n'
    assert size.continuation == "    # a comment after the docstring\n    return self._size"


def test_prompt_and_continuation_are_the_function_as_it_was(stdlib):
    for document in python_functions(stdlib):
        (function,) = ast.parse(document.text).body
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function)
        assert not document.text.endswith("\n")


def test_a_function_that_occurs_twice_is_taken_once(stdlib):
    (stdlib / "copy.py").write_text(f"if True:\n    {ADD.text.replace(chr(10), chr(10) + '    ')}\n")
    documents = python_functions(stdlib)
    assert documents.count(ADD) == 1
    assert len({document.text for document in documents}) == len(documents)


def test_files_are_visited_in_name_order(stdlib):
    for name in ("zeta", "alpha", "pkg/beta"):
        file = stdlib / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'def {Path(name).name}():\n    """Doc."""\n    return 1\n')
    names = [document.prompt.split("(")[0].split()[-1] for document in python_functions(stdlib)]
    assert names == ["alpha", "add", "size", "beta", "zeta"]


@pytest.mark.parametrize(
    "folder", ["test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "a/test/b"]
)
def test_test_folders_and_installed_packages_are_skipped(stdlib, folder):
    before = python_functions(stdlib)
    (stdlib / folder).mkdir(parents=True)
    (stdlib / folder / "more.py").write_text('def more():\n    """Doc."""\n    return 1\n')
    assert python_functions(stdlib) == before


@pytest.mark.parametrize("content", [b"def broken(:\n", b'def latin():\n    """\xe9"""\n    return 1\n', b""])
def test_a_file_that_is_not_python_in_utf8_is_passed_over(stdlib, content):
    before = python_functions(stdlib)
    (stdlib / "broken.py").write_bytes(content)
    assert python_functions(stdlib) == before


def test_a_file_whose_syntax_only_warns_is_read_quietly(stdlib):
    (stdlib / "warns.py").write_text('def warns():\n    """Doc."""\n    return "\\d" is 1\n')
    assert any("warns" in document.prompt for document in python_functions(stdlib))


def test_an_empty_folder_has_no_documents(tmp_path):
    assert python_functions(tmp_path) == []
