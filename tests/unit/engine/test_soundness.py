"""Models that give no finite logits are told as such, before anything else is said of them."""

import math

import pytest
import torch

from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.soundness import sound_token
from adadecode.errors import NotFiniteError
from adadecode.kernels.layers import layer_step
from adadecode.model.decoder import DecoderModel
from tests.models import KERNELS, tiny_lm

MLP = "model.layers.2.mlp.down_proj.weight"
HEAD = "lm_head.weight"


def broken(name: str, value: float, dtype: torch.dtype, kernels: str = "eager") -> DecoderModel:
    """A tiny model in `dtype` one of whose weights is `value`, with the signs it had."""
    lm = tiny_lm().to(dtype)
    with torch.no_grad():
        lm.get_parameter(name).sign_().mul_(value)
    return DecoderModel(lm, kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", [MLP, HEAD, "model.embed_tokens.weight", "model.norm.weight"])
def test_a_weight_that_is_nan_is_named(name, kernels):
    with pytest.raises(NotFiniteError) as caught:
        check_rows_independent(broken(name, math.nan, torch.float32, kernels), 8)
    assert str(caught.value) == (
        f"logits are not finite in float32, whatever the prompt: {name} holds NaN or infinity; check the checkpoint"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("name", "where"), [(MLP, "from layer 3 of 4 on hidden states overflow"), (HEAD, "LM head")])
def test_weights_that_overflow_in_float16_are_told_with_the_layer_and_the_dtypes_that_help(name, where):
    with pytest.raises(NotFiniteError, match=rf"not finite in float16, .*{where}.*; use --dtype bfloat16 or float32"):
        check_rows_independent(broken(name, 6e4, torch.float16), 8)


@pytest.mark.parametrize("kernels", KERNELS)
def test_weights_that_overflow_in_bfloat16_are_told_with_the_layer(kernels):
    with pytest.raises(NotFiniteError, match=r"in bfloat16, .*from layer 3 of 4 on .*; try --dtype float32"):
        check_rows_independent(broken(MLP, 3e38, torch.bfloat16, kernels), 8)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bad_ids", [[0], [3, 40], list(range(60))])
def test_tokens_that_alone_are_not_finite_keep_no_model_from_being_used(bad_ids, kernels):
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.embed_tokens.weight[bad_ids] = math.nan
    model = DecoderModel(lm, kernels)
    check_rows_independent(model, 8)
    assert kernels == "native" or sound_token(model, 8) not in bad_ids, "native kernels keep a token's NaN from others"


def test_rows_that_depend_on_each_other_are_found_beside_tokens_that_are_not_finite():
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.embed_tokens.weight[[0, 3]] = math.nan
    model = DecoderModel(lm, "eager")
    model.steps.layer_step = lambda weights, shape, hidden, *where: (
        layer_step(weights, shape, hidden, *where) + hidden.nan_to_num().mean()
    )
    with pytest.raises(Exception, match="depend on its slot"):
        check_rows_independent(model, 8)
