"""MBPP (Austin et al. 2021, arXiv 2108.07732): whether the program that a model wrote passes the sample's assertions.

`passed` is of one output, `pass@k` of all repeats of a sample. Of an answer with a fenced block the first block is taken,
of any other output all up to the first of STOPS: where few-shot prompts end a program, and where it goes on to use or test
itself.
"""

from adadecode.scoring.pass_at_k import passes
from adadecode.scoring.programs import CodeReference, unfenced
from adadecode.scoring.scorer import Scorer
from adadecode.scoring.stops import until

STOPS = ("[DONE]", "\nassert", "\nprint", "\nif __name__", '\n"""', "\n```", "\n[BEGIN]")


def program(output_text: str, reference: str) -> str:
    """The program that succeeds when the output is right; raises ValueError where the reference holds no tests."""
    tests, prompt, _ = CodeReference.of(reference)
    block = unfenced(output_text)
    return f"{prompt}{until(output_text, STOPS) if block is None else block}\n{tests}\n"


SCORER = Scorer("mbpp", version=1, metrics=("passed",), program=program, over_repeats=passes)
