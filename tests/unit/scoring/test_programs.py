"""What of an output is taken as code, and pass@k."""

import itertools
import json

import pytest

from adadecode.scoring import mbpp
from adadecode.scoring.humaneval import program, solution
from adadecode.scoring.pass_at_k import pass_at_k, passes
from adadecode.scoring.programs import CodeReference
from adadecode.scoring.sandbox import Sandbox

PROMPT = '''import math


def half(x):
    return x / 2


def quarter(x):
    """A quarter of x, by `half`."""
'''
BODY = "    return half(half(x))\n"
WHOLE = 'def quarter(x):\n    """By half."""\n    return half(half(x))\n'
TESTS = "def check(candidate):\n    assert candidate(8) == 2\n\n\ncheck(quarter)"
REFERENCE = CodeReference(TESTS, PROMPT, "quarter").to_text()


def ends_well(text: str) -> bool:
    try:
        exec(compile(text, "program.py", "exec"), {"__name__": "program"})
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    "output",
    [
        BODY,
        "\n\n" + BODY,
        BODY + "\n\ndef main():\n    quarter(",
        BODY + "\n\nclass Unfinished",
        BODY + "\n# and so on (",
        BODY + "\nif __name__ == '__main__':\n    quarter(",
        BODY + "\nprint(quarter(",
        BODY + "```\nThat is the body (",
        "    if x:\n        return half(half(x))\n    # a comment\n    return 0\n",
        f"```python\n{WHOLE}```",
        f"```py\n{WHOLE}\n```\n",
        f"```\n{WHOLE}```",
        f"Here it is:\n\n```python\n{WHOLE}```\n\nIt takes half twice (",
        f"First an example:\n```python\nquarter(8)\n```\nNow the function:\n```python\n{WHOLE}```",
        f"```python\n{PROMPT}{BODY}```",
        f"```python\n{WHOLE}\n# Test\nassert quarter(4) == 1\n```",
        f"```python\n{WHOLE}",
        f"   \n  \n```python\n{WHOLE}```",
        f"```python\n{BODY}```",
        f"1. Indented:\n\n   ```python\n{WHOLE}   ```",
        WHOLE,
        f"{WHOLE}\n\ndef test_quarter(:\n",
        f"import os\n\n\n{WHOLE}",
        f"{WHOLE}\n```\nDone (",
    ],
)
def test_the_function_is_found_in_completions_and_in_answers(output):
    assert ends_well(program(output, REFERENCE)), program(output, REFERENCE)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "    return x\n",
        "I cannot do that.",
        "```python\n```",
        f"```python\n{WHOLE.replace('half(x)', 'x')}```",
        "```\nfoo\n```",
    ],
)
def test_what_is_no_solution_fails(output):
    assert not ends_well(program(output, REFERENCE))


def test_a_whole_function_keeps_the_imports_and_helpers_of_the_prompt_and_nothing_else_of_it():
    assert solution(f"```python\n{WHOLE}```", PROMPT, "quarter") == PROMPT.partition("def quarter")[0] + WHOLE


def test_a_function_whose_name_begins_alike_is_not_taken_for_it():
    others = "```python\ndef quarters(x):\n    return 4\n```\n"
    assert solution(f"{others}```python\n{WHOLE}```", PROMPT, "quarter").endswith(WHOLE)


@pytest.mark.parametrize(
    "output",
    [
        "def add(a, b):\n    return a + b\n",
        "def add(a, b):\n    return a + b\n[DONE]\nAnd (",
        "def add(a, b):\n    return a + b\nassert add(1, 2) == 4",
        "def add(a, b):\n    return a + b\nprint(add(1,",
        "class C:\n    pass\n\n\ndef add(a, b):\n    return a + b\n\n\nif __name__ == '__main__':\n    add(",
        "Sure!\n```python\ndef add(a, b):\n    return a + b\n```\nThat (",
    ],
)
def test_a_program_of_mbpp_is_found(output):
    assert ends_well(mbpp.program(output, CodeReference("assert add(1, 2) == 3").to_text()))
    assert not ends_well(mbpp.program(output, CodeReference("assert add(1, 2) == 4").to_text()))


@pytest.mark.parametrize("text", ["", "18", "[]", "{}", json.dumps({"tests": ""})])
def test_a_reference_of_another_kind_is_an_error_and_no_program(text):
    with pytest.raises(ValueError, match=r"tests|Expecting"):
        CodeReference.of(text)


def test_a_program_is_run_as_it_is_made():
    assert Sandbox("none", 5.0).run(program(BODY, REFERENCE)) == (1.0, None)
    assert Sandbox("none", 5.0).run(program("    return 3\n", REFERENCE)) == (0.0, "AssertionError")


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 7) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_the_draws_with_a_program_that_passes(n, k):
    for num_passed in range(n + 1):
        draws = list(itertools.combinations([1] * num_passed + [0] * (n - num_passed), k))
        assert pass_at_k(n, num_passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_told_for_the_ks_that_repeats_allow():
    assert passes([1.0]) == {"pass@1": 1.0}
    assert passes([1.0, 0.0, 0.0, 0.0]) == {"pass@1": 0.25, "pass@2": 0.5}
    assert list(passes([0.0] * 200)) == ["pass@1", "pass@2", "pass@5", "pass@10", "pass@100"]
