"""Every method that owes vanilla's output, over random models, policies and drafters: equal tokens, equal bits."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadecode.engine.decode import decode
from adadecode.engine.generate import Request
from adadecode.engine.policy import OneExit, Policy
from adadecode.evaluation.compare import logits_digest
from adadecode.kernels.sampling import Draw
from adadecode.methods import METHODS, names_that_owe
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.medusa_heads import MedusaHeads
from tests.fuzz.cases import fuzzed
from tests.models import (
    ANY_FAMILY,
    KERNELS,
    letters_stop,
    medusa_heads,
    random_gates,
    random_heads,
    store_of,
    tiny_lm,
    tiny_model,
)

DTYPES = {
    "native": (torch.float32, torch.bfloat16),
    "eager": (torch.float32, torch.bfloat16, torch.float16),
}
# Sizes of a layer: width, intermediate, heads, heads of keys and values, width of a head.
SIZES = ((32, 48, 4, 2, 8), (32, 40, 4, 4, 8), (64, 96, 4, 1, 16), (48, 64, 6, 2, 8))
NAMES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class Case:
    """What is decoded: a model, the policy of the run, and what may draft for it."""

    model: DecoderModel
    policy: Policy
    request: Request
    heads: ExitHeads
    draft: DecoderModel
    medusa: MedusaHeads


# What drafts for each method that owes vanilla's output, of what a case has.
EXACT: dict[str, Callable[[Case], dict[str, Any]]] = {
    "adadecode": lambda case: {"heads": case.heads},
    "adadecode-never": lambda case: {"heads": case.heads},
    "ngram": lambda case: {"heads": case.heads if case.policy.ngram_store else None},
    "layerskip": lambda case: {"heads": case.heads},
    "speculative": lambda case: {"draft": case.draft},
    "medusa": lambda case: {"medusa": case.medusa},
}

GAMMAS = st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0])


@st.composite
def models(draw: Any, *, min_layers: int = 2, vocab_size: int | None = None) -> dict[str, Any]:
    """The arguments of a random `tiny_lm`."""
    sizes = dict(zip(NAMES, draw(st.sampled_from(SIZES)), strict=True))
    return sizes | {
        "family": draw(st.sampled_from(sorted(ANY_FAMILY))),
        "seed": draw(st.integers(0, 9)),
        "num_layers": draw(st.integers(min_layers, 6)),
        "tied": draw(st.booleans()),
        "context_len": draw(st.sampled_from([12, 40, 1024])),
        "vocab_size": draw(st.sampled_from([60, 97, 120])) if vocab_size is None else vocab_size,
    }


@st.composite
def draws(draw: Any, prompt_len: int) -> Draw | None:
    """How tokens are drawn after a prompt; None: the likeliest are taken."""
    temperature = draw(st.sampled_from([None, 0.3, 0.7, 1.0, 1.5]))
    if temperature is None:
        return None
    top_k, top_p = draw(st.sampled_from([0, 1, 7, 200])), draw(st.sampled_from([1.0, 0.9, 0.3]))
    min_p = draw(st.sampled_from([0.0, 0.05, 0.5]))
    return Draw(temperature, top_k, top_p, min_p, draw(st.integers(0, 2**64 - 1)), prompt_len)


@st.composite
def draft_models(draw: Any, of: dict[str, Any], dtype: torch.dtype, kernels: Any) -> DecoderModel:
    """A draft model for the model with the arguments `of`: the same, one of another depth, or another altogether."""
    kind = draw(st.sampled_from(["same", "first layers", "a layer more", "another"]))
    if kind == "another":
        return tiny_model(dtype=dtype, kernels=kernels, **draw(models(min_layers=1)))
    lm = tiny_lm(**of | {"num_layers": of["num_layers"] + (kind == "a layer more")})
    if kind == "first layers":
        num_layers = draw(st.integers(1, of["num_layers"] - 1))
        for name in ("layer_types", "no_rope_layers"):
            if hasattr(lm.config, name):
                setattr(lm.config, name, getattr(lm.config, name)[:num_layers])
        lm.config.num_hidden_layers = num_layers
        del lm.base_model.layers[num_layers:]
    return DecoderModel(lm.to(dtype), kernels)


@st.composite
def cases(draw: Any, kernels: Any) -> Case:
    """A model with `kernels`, a policy, a prompt, and heads and a draft model for it."""
    of, dtype = draw(models(vocab_size=97)), draw(st.sampled_from(DTYPES[kernels]))
    num_stages = draw(st.integers(1, min(3, of["num_layers"]))) if kernels == "eager" else 1
    model = tiny_model(dtype=dtype, kernels=kernels, num_stages=num_stages, **of)
    layers = st.integers(1, model.num_layers - 1)
    exits = tuple(sorted(draw(st.sets(layers, max_size=3))))
    policy = Policy(
        exits,
        tuple(draw(GAMMAS) for _ in exits),
        draw(st.integers(0, 9)),
        reject=draw(st.sampled_from([None, 0.0, 0.02, 0.4])),
        ngram=draw(st.sampled_from([None, 0.0, 0.3, 0.6])),
        stop=draw(st.sampled_from(["token", "chain"])),
        ngram_store=draw(st.booleans()),
        layerskip=OneExit(draw(layers), draw(st.integers(1, 17))),
        draft_gamma=draw(st.sampled_from([0.0, 0.001, 0.02, 0.2])),
        medusa_gamma=draw(st.sampled_from([0.0, 0.001, 0.02, 0.2])),
    )
    all_exits = tuple(range(1, model.num_layers))
    gates = random_gates(model, all_exits) if draw(st.booleans()) else {}
    heads = random_heads(model, all_exits, draw(st.integers(0, 3)), gates=gates, gate=0.5 if gates else 0.0)
    if policy.ngram_store:
        heads = heads.with_store(known_store(draw(st.integers(0, 3))))
    token_ids = st.integers(0, draw(st.sampled_from([2, 96])))  # of few tokens a text repeats itself
    prompt = draw(st.lists(token_ids, min_size=1, max_size=min(70, model.context_len - 1)))
    eos = draw(st.sampled_from([(), (3, 9, 11, 17, 29)]))
    stop_string = draw(st.sampled_from([None, "ab", "ccc", "d"]))
    stops = None if stop_string is None else letters_stop(stop_string)
    sampled = draw(draws(len(prompt)))
    request = Request(prompt, draw(st.integers(1, 24)), eos, record_logits=True, stops=stops, draw=sampled)
    medusa = medusa_heads(
        model,
        draw(st.integers(1, 9)),
        noise=draw(st.sampled_from([0.0, 0.02, 0.3])),
        num_tokens=draw(st.sampled_from([1, 40, 97])),
        seed=draw(st.integers(0, 3)),
    )
    return Case(model, policy, request, heads, draw(draft_models(of, dtype, kernels)), medusa)


@functools.cache
def known_store(seed: int) -> Any:
    """The n-grams of what some model of that seed says, which is any model's store: what is drafted decides nothing."""
    return store_of(tiny_model(seed=seed), [[seed, 1, 2], [0, 1, seed], [40 + seed]])


def check_is_vanillas(case: Case, seen: Counter[tuple[str, bool]]) -> None:
    """Decodes `case` by every exact method; notes in `seen` which drafts of each method were accepted, and which not."""
    vanilla = decode(case.model, METHODS["vanilla"], case.request, case.policy)
    expected, digest = vanilla.generation, logits_digest(vanilla.logits)
    for name, drafting in EXACT.items():
        decoded = decode(case.model, METHODS[name], case.request, case.policy, **drafting(case))
        found = decoded.generation
        assert found.output_token_ids == expected.output_token_ids, name
        assert found.finish_reason == expected.finish_reason, name
        assert logits_digest(decoded.logits) == digest, name
        assert found.num_rounds + found.num_accepted == len(expected.output_token_ids) - 1, name
        seen[name, True] += found.num_accepted
        seen[name, False] += found.num_drafted - found.num_accepted


def test_no_exact_method_is_left_out():
    assert set(EXACT) == set(names_that_owe("exact"))


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_exact_method_gives_vanillas_tokens_and_bits(kernels):
    seen: Counter[tuple[str, bool]] = Counter()

    @fuzzed
    @given(case=cases(kernels))
    def each_does(case: Case) -> None:
        check_is_vanillas(case, seen)

    each_does()
    drafting = [name for name in EXACT if METHODS[name].drafts]
    assert all(seen[name, accepted] for name in drafting for accepted in (True, False)), seen
