"""The moves of a round: begin, advance through a segment, draft, verify. Each is a pure step over `Round`.

Shapes: W rows, d model width, V vocabulary.
"""

import math

import torch
from torch import Tensor

from adadecode.engine.state import Round
from adadecode.errors import NonFiniteLogitsError
from adadecode.model.decoder import DecoderModel
from adadecode.model.kv_cache import KVCache


def begin_round(model: DecoderModel, cache: KVCache, token_id: int, position: int, width: int) -> Round:
    """A round of W = `width` rows whose slot 0 is the last verified token, before layer 1."""
    hidden = torch.zeros(width, model.width, dtype=model.dtype, device=model.device)
    hidden[0] = embed_one(model, token_id)
    return Round(position, [token_id], [0], hidden, model.step_inputs(position, width, cache))


def embed_one(model: DecoderModel, token_id: int) -> Tensor:
    """The embedding `[d]` of one token: a table look-up, so its bits do not depend on shape."""
    return model.embed(torch.tensor([token_id], device=model.device))[0]


def advance(model: DecoderModel, cache: KVCache, round_: Round, stop: int) -> int:
    """Runs the current slot and all slots at its boundary up to layer `stop`; returns the number of layers run."""
    start, lo, hi = round_.layers_run[-1], round_.first_joined, round_.current + 1
    slots = torch.arange(len(round_.hidden), device=model.device)
    active = (slots >= lo) & (slots < hi)
    round_.hidden = model.run_layers(round_.hidden, start, stop, active, round_.step, cache)
    round_.layers_run[lo:hi] = [stop] * (hi - lo)
    round_.check()
    return stop - start


def add_draft(model: DecoderModel, round_: Round, token_id: int, exit_layer: int) -> None:
    """Parks the current slot at `exit_layer` and makes the drafted `token_id` current, before layer 1."""
    round_.token_ids.append(token_id)
    round_.layers_run.append(0)
    round_.draft_exits.append(exit_layer)
    round_.hidden[round_.current] = embed_one(model, token_id)
    round_.check()


def verify(model: DecoderModel, round_: Round) -> tuple[list[int], int, Tensor]:
    """The final head over all rows: next token of every slot, number of accepted drafts, logits `[W, V]`.

    A draft is accepted iff it equals the argmax before it and every earlier draft was accepted. Ties go to the lowest
    id. Raises NonFiniteLogitsError when an accepted row's maximum is NaN or infinite.
    """
    assert set(round_.layers_run) == {model.num_layers}, round_.layers_run
    logits = model.lm_head(round_.hidden)
    top, argmax = logits.max(dim=-1)
    predicted = argmax.tolist()[: round_.current + 1]
    num_accepted = 0
    while num_accepted < round_.num_drafts and round_.token_ids[num_accepted + 1] == predicted[num_accepted]:
        num_accepted += 1
    check_finite(top[: num_accepted + 1].tolist(), round_.first_position)
    return predicted, num_accepted, logits


def check_finite(top_logits: list[float], position: int) -> None:
    """Raises NonFiniteLogitsError unless every maximum logit is a number."""
    if not all(map(math.isfinite, top_logits)):
        raise NonFiniteLogitsError(f"logits at position {position} are not finite; try --dtype float32")
