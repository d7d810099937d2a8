"""Whether a model gives finite logits at all, and where it stops to when it does not."""

import math

import torch

from adadecode.errors import NotFiniteError
from adadecode.kernels.step import DecodeStep
from adadecode.model.decoder import DecoderModel

PROMPT_LEN = 8
WAYS_OUT = {
    torch.float16: "use --dtype bfloat16 or float32, which hold larger numbers, or check the checkpoint",
    torch.bfloat16: "try --dtype float32, or check the checkpoint",
    torch.float32: "check the checkpoint",
}


@torch.inference_mode()
def sound_token(model: DecoderModel, width: int) -> int:
    """A token with which a prompt begins whose logits are finite; its others follow it by their ids.

    A few tokens alone may overflow, and fail their samples only, so three places of the vocabulary are tried. Raises
    NotFiniteError when none gives finite logits: then the weights overflow in the model's dtype, or are damaged.
    """
    vocab_size = model.vocab_size
    prompt_len = max(1, min(PROMPT_LEN, model.context_len // 2))
    step = model.new_step(width, prompt_len + 1)
    for first in (0, vocab_size // 3, 2 * vocab_size // 3):
        prefilled = step.prefill([(first + i) % vocab_size for i in range(prompt_len)])
        if math.isfinite(prefilled.top):  # NaN when any logit is
            return first
    raise NotFiniteError(
        f"logits are not finite in {str(model.dtype).removeprefix('torch.')}, whatever the prompt: "
        f"{_origin(model, step)}; {WAYS_OUT[model.dtype]}"
    )


def _origin(model: DecoderModel, step: DecodeStep) -> str:
    """What is the first not to be finite: a weight, or what a layer makes of a token."""
    for name, weight in model.lm.named_parameters():
        if not weight.isfinite().all():
            return f"{name} holds NaN or infinity"
    step.cache.clear()
    step.begin(0)
    step.put(0, [0])
    for layer in range(model.num_layers):
        step.run(0, 1, layer, layer + 1)
        if not step.hidden[0].isfinite().all():
            return f"from layer {layer + 1} of {model.num_layers} on hidden states overflow"
    return "hidden states are, so the last norm or the LM head overflows"
