"""transformers' own ways to speculate: its tokens, what is counted of its rounds, and where it cannot."""

from typing import Any

import pytest
import torch

from adadecode.engine.decode import check_can_decode, decode
from adadecode.engine.generate import Request
from adadecode.engine.policy import OneExit, Policy
from adadecode.errors import UsageError
from adadecode.methods import METHODS
from tests.models import FAMILIES, tiny_model

PROMPT = [7, 8, 9] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_own_ways_to_speculate_give_its_own_tokens(family):
    model, policy = tiny_model(family), Policy(max_drafts=5, layerskip=OneExit(2, 4))
    methods = [METHODS[name] for name in ("transformers", "hf-prompt-lookup", "hf-early-exit", "hf-assisted")]
    draft = tiny_model(family, seed=0)
    check_can_decode(model, methods, policy, draft=draft)
    plain, *assisted = (
        decode(model, method, Request(PROMPT, 40, record_logits=True), policy, draft=draft) for method in methods
    )
    for method, (generation, logits) in zip(methods[1:], assisted, strict=True):
        assert generation.output_token_ids == plain.generation.output_token_ids, method
        assert logits.shape == plain.logits.shape
        assert generation.num_accepted == 39 - generation.num_rounds
        assert 0 < generation.num_accepted <= generation.num_drafted
        assert generation.num_rounds == len(generation.step_gaps_s) < 39
    assert assisted[1].generation.exits == (2,)
    assert assisted[2].generation.num_accepted == assisted[2].generation.num_drafted, "it is the model itself"


def test_what_transformers_cannot_do_is_one_line():
    model = tiny_model()
    with pytest.raises(UsageError, match="hf-assisted: transformers takes a draft model of the same vocabulary alone"):
        check_can_decode(model, [METHODS["hf-assisted"]], Policy(), draft=tiny_model(vocab_size=130))
    check_can_decode(model, [METHODS["speculative"]], Policy(), draft=tiny_model(vocab_size=130))
    for name in ("speculative", "hf-assisted"):
        with pytest.raises(UsageError, match=f"--draft-model is missing: {name} drafts with one"):
            check_can_decode(model, [METHODS[name]], Policy())
    layers, exits = model.lm.model.layers, Policy(layerskip=OneExit(2, 4))

    class AllLayers(torch.nn.ModuleList):
        def __getitem__(self, idx) -> Any:
            return self if isinstance(idx, slice) else super().__getitem__(idx)

    model.lm.model.layers = AllLayers(layers)
    with pytest.raises(UsageError, match="hf-early-exit: transformers runs all layers of a 'llama' model"):
        check_can_decode(model, [METHODS["hf-early-exit"]], exits)


def test_an_early_exit_that_fails_half_way_leaves_the_model_whole(monkeypatch):
    """transformers sets the number of layers while it drafts, and an error there would leave it so."""
    model, policy = tiny_model(), Policy(max_drafts=5, layerskip=OneExit(2, 4))
    before = decode(model, METHODS["transformers"], Request(PROMPT, 20), policy).generation
    layer = model.lm.model.layers[1]
    handle = layer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode(model, METHODS["hf-early-exit"], Request(PROMPT, 20), policy)
    handle.remove()
    after = decode(model, METHODS["transformers"], Request(PROMPT, 20), policy).generation
    assert after.output_token_ids == before.output_token_ids
    assert after.layers_run == before.layers_run
