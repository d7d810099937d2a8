"""HumanEval (Chen et al. 2021, arXiv 2107.03374): whether a function that a model completed passes the sample's tests.

`passed` is of one output, `pass@k` of all repeats of a sample. What of an output is taken:

- A completion, which begins with the indented body: up to the first of STOPS, where the paper's models were stopped,
  or to a fence; it follows the prompt.
- An output that defines the function before any fence: from its beginning to the first stop after the definition.
- An answer with a fenced block, as chat models give: the block that defines the function, or else the first.
- Anything else, as a completion.

A whole function follows what stands before the function in the prompt, which are its imports and helpers.
"""

import re

from adadecode.scoring.pass_at_k import passes
from adadecode.scoring.programs import CodeReference, definition, unfenced
from adadecode.scoring.scorer import Scorer
from adadecode.scoring.stops import until

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
COMPLETION_STOPS = (*STOPS, "\n```")


def program(output_text: str, reference: str) -> str:
    """The program that succeeds when the output is right; raises ValueError where the reference holds no tests."""
    tests, prompt, name = CodeReference.of(reference)
    assert name is not None, "a HumanEval sample names its function"
    return f"{solution(output_text, prompt, name)}\n{tests}\n"


def solution(output_text: str, prompt: str, name: str) -> str:
    """The prompt's function `name` as the output has it, with the imports and helpers before it."""
    at = definition(output_text, name)
    if _begins_indented(output_text) or (at is None and "```" not in output_text):
        return prompt + until(output_text, COMPLETION_STOPS)
    if at is not None and "```" not in output_text[:at]:
        return _whole(output_text[:at] + until(output_text[at:], COMPLETION_STOPS), prompt, name)
    block = unfenced(output_text, name)
    return prompt + until(output_text, COMPLETION_STOPS) if block is None else _whole(block, prompt, name)


def _begins_indented(text: str) -> bool:
    """Whether its first line that is not blank is indented, as the body of a function is."""
    return re.match(r"(?:[ \t]*\n)*[ \t]+\S", text) is not None


def _whole(code: str, prompt: str, name: str) -> str:
    """`code` after what stands before the function in the prompt; a block that has only its body, after the prompt."""
    if definition(code, name) is None and _begins_indented(code):
        return prompt + code
    at = definition(prompt, name)
    return prompt[: 0 if at is None else at] + code


SCORER = Scorer("humaneval", version=1, metrics=("passed",), program=program, over_repeats=passes)
