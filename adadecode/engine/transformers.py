"""transformers' own `generate`: the independent oracle, the baseline users know, and its own ways to speculate.

What drafts for it is what drafts in a round of ours: n-grams of the text (`prompt_lookup_num_tokens`), one exit of the
model (`assistant_early_exit`), or a draft model (`assistant_model`). How much it drafts is its own affair, and so is the
noise by which it draws: its samples are of the same distribution as ours, and other tokens.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from adadecode.engine.generate import Request
from adadecode.engine.policy import VANILLA, Policy
from adadecode.engine.stop_strings import StopScan
from adadecode.engine.tally import Decoded, Tally
from adadecode.errors import UsageError
from adadecode.kernels.sampling import Draw
from adadecode.model.decoder import DecoderModel

LOOKED_UP = 10  # tokens of a prompt lookup, as transformers' documentation has it; it has no default


class _RoundClock(StoppingCriteria):
    """Tells `tally` of every round of `generate`, whose pass over all layers it watches for drafts.

    It stops where `scan` finds a stop string; what else the round gave is not among the `num_kept` tokens of the output.
    """

    def __init__(self, tally: Tally, scan: StopScan, num_layers: int, prompt_len: int) -> None:
        self._tally, self._scan, self._num_layers, self._num_known = tally, scan, num_layers, prompt_len
        self._num_drafted, self._is_first = 0, True
        self.num_kept = 0

    def watch(self, lm: Any, _: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Before a forward of `lm` with keyword arguments `inputs`: beside what is known all its rows are drafts."""
        if lm.config.num_hidden_layers == self._num_layers:  # with fewer it drafts itself
            num_rows = inputs["input_ids"].shape[1]
            self._num_drafted = num_rows - (self._num_known if self._is_first else 1)
            self._is_first = False

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> Any:
        num_given = input_ids.shape[1] - self._num_known
        num_kept = num_given
        if self._scan.looks:
            num_kept = len(self._scan.kept([int(token_id) for token_id in input_ids[0, self._num_known :]]))
        self._num_known += num_given
        self.num_kept += num_kept
        self._tally.add_pass(self._num_drafted, num_kept - 1)
        return torch.full((input_ids.shape[0],), self._scan.is_over, device=input_ids.device)


@torch.inference_mode()
def generate_with_transformers(
    model: DecoderModel, request: Request, policy: Policy = VANILLA, draft: DecoderModel | None = None
) -> Decoded:
    """`generate` of the wrapped model through transformers' attention, mostly SDPA, and its own cache.

    What `policy` drafts with, one thing at most, drafts: `draft` where that is the draft model. Where tokens are drawn it
    draws under the same temperature and filters, by torch's own generator, seeded with the draw's key.
    """
    limit, eos = request.limit(model), sorted(request.eos(model))
    config = GenerationConfig(
        **_sampling(request.draw),
        max_new_tokens=limit,
        eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,
        return_dict_in_generate=True,
        output_logits=request.record_logits,
        prompt_lookup_num_tokens=None if policy.ngram is None else LOOKED_UP,
        assistant_early_exit=next(iter(policy.exits), None),
    )
    assistant = {}
    if policy.draft_model:
        assert draft is not None, policy
        assistant = {"assistant_model": draft.lm}
    inputs = torch.tensor([list(request.prompt_ids)], device=model.device)
    tally = Tally(model.device, model.num_layers, policy.draft_exits)
    scan = StopScan(request.stops, eos)
    clock = _RoundClock(tally, scan, model.num_layers, len(request.prompt_ids))
    with _watched(model, clock), _seeded(model, request.draw):
        result = model.lm.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([clock]),
            **assistant,
        )
    output = result.sequences[0, len(request.prompt_ids) :].tolist()[: clock.num_kept]
    decoded = tally.decoded(output, eos, is_stopped=scan.is_over)
    if not request.record_logits:
        return decoded
    # `generate` widens the logits to float32; back in the model's dtype they are the bits its LM head gave
    return decoded._replace(logits=torch.cat(result.logits)[: len(output)].to(model.dtype).cpu())


def _sampling(draw: Draw | None) -> dict[str, Any]:
    """How `draw` draws, as arguments of a GenerationConfig; each is given, for its defaults filter."""
    if draw is None:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": draw.temperature,
        "top_k": draw.top_k,
        "top_p": draw.top_p,
        "min_p": draw.min_p or None,
    }


@contextlib.contextmanager
def _seeded(model: DecoderModel, draw: Draw | None) -> Generator[None]:
    """Makes torch draw by the key of `draw` within, and as it would have drawn afterwards."""
    if draw is None:
        yield
        return
    devices = [device for device in model.devices if device.type == "cuda"]
    with torch.random.fork_rng(devices):  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(draw.key)  # pyright: ignore[reportUnknownMemberType]
        yield


@contextlib.contextmanager
def _watched(model: DecoderModel, clock: _RoundClock) -> Generator[None]:
    """`clock` watches the forwards of `model`, which has all of its layers again in the end, whatever failed.

    What transformers says of its own calls of itself is not for a user.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    handle = model.lm.register_forward_pre_hook(clock.watch, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        transformers_logging.set_verbosity(verbosity)
        model.lm.config.num_hidden_layers = model.num_layers


def check_transformers(model: DecoderModel, name: str, policy: Policy, draft: DecoderModel | None) -> None:
    """Raises UsageError where transformers cannot draft as `policy` of method `name` says."""
    if policy.exits and not exits_early(model):
        raise UsageError(
            f"--methods {name}: transformers runs all layers of a {model.config.model_type!r} model whatever exit it is "
            "told; drop the method"
        )
    if policy.draft_model and draft is not None and draft.vocab_size != model.vocab_size:
        raise UsageError(
            f"--methods {name}: transformers takes a draft model of the same vocabulary alone, and this one has "
            f"{draft.vocab_size} tokens for {model.vocab_size}; drop the method, speculative can"
        )


@torch.inference_mode()
def exits_early(model: DecoderModel) -> bool:
    """Whether transformers leaves out the last layer of `model` when it is told that there are fewer."""
    ran: list[torch.nn.Module] = []

    def note(layer: torch.nn.Module, _: Any) -> None:
        ran.append(layer)

    handle = model.layers[-1].register_forward_pre_hook(note)
    try:
        model.lm.config.num_hidden_layers = model.num_layers - 1
        model.lm(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
        model.lm.config.num_hidden_layers = model.num_layers
    return not ran
