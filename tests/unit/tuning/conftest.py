import functools
from typing import Any, NamedTuple

import pytest
import torch

from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.records import Prompt
from adadecode.settings import Kernels
from adadecode.tuning.replay import ModelFacts
from adadecode.tuning.trace import SampleTrace, TraceSpace, record
from tests.models import needs_compiler, random_gates, random_heads, store_of, tiny_model

EXITS = (1, 2, 3)
# the last prompt repeats itself, so that n-grams find something from the start
PROMPTS = [[5, 9, 11, 13], [20], [7, 8, 7, 8, 7], [30, 31, 32, 30, 31, 32, 30], list(range(3, 40)), [50, 51] * 6]
EOS = 42


class Traced(NamedTuple):
    model: DecoderModel
    heads: ExitHeads
    space: TraceSpace
    facts: ModelFacts
    traces: list[SampleTrace]


@functools.cache
def trace_tiny(
    kernels: Kernels, dtype: torch.dtype, max_new_tokens: int = 24, *, has_store: bool = False, **space: Any
) -> Traced:
    """Traces of `PROMPTS` with a tiny model, heads that are often wrong, gates, and a store that knows some outputs."""
    model = tiny_model(kernels=kernels, dtype=dtype, eos_token_id=EOS)
    heads = random_heads(model, EXITS, gates=random_gates(model, EXITS))
    if has_store:
        heads = heads.with_store(store_of(model, PROMPTS[::2]))
    settings: dict[str, Any] = {"max_drafts": 3, "gamma_floor": 0.1, "ngram_floor": 0.05} | space
    of = TraceSpace(exits=EXITS, max_new_tokens=max_new_tokens, **settings)
    traces = [record(model, heads, of, Prompt("tiny", str(idx), prompt)) for idx, prompt in enumerate(PROMPTS)]
    return Traced(model, heads, of, ModelFacts.of(model, {"tiny": heads}), traces)


PLACES = [
    pytest.param(("native", torch.float32), marks=needs_compiler, id="native-float32"),
    pytest.param(("native", torch.bfloat16), marks=needs_compiler, id="native-bfloat16"),
    pytest.param(("eager", torch.float32), id="eager-float32"),
]


@pytest.fixture(scope="session", params=PLACES)
def traced(request) -> Traced:
    """Traces made with every kind of CPU kernel, of heads beside a store."""
    return trace_tiny(*request.param, has_store=True)


@pytest.fixture(scope="session")
def eager() -> Traced:
    """Traces of heads without a store."""
    return trace_tiny("eager", torch.float32)
