"""The premise of the parity contract, checked on the machine at hand before anything is measured."""

import random

import torch

from adadecode.errors import RowsDependentError
from adadecode.model.decoder import DecoderModel

NUM_COMPANIES = 3
CACHE_SIZES = (64, 1024)


@torch.inference_mode()
def check_rows_independent(model: DecoderModel, width: int) -> None:
    """Raises RowsDependentError unless a row gives the same bits in each of `width` slots, whoever is beside it.

    Runs one token through all layers and the LM head in every slot: alone, and with the tokens before it in the slots below
    and random ones in those above. Kernels are deterministic for a shape, but some choose other instructions for the last
    rows of a step; which do so depends on the library, the number of threads and the chip, so it is tried instead of
    assumed.
    """
    for num_positions in CACHE_SIZES:
        _check_at(model, width, num_positions)


def _check_at(model: DecoderModel, width: int, num_positions: int) -> None:
    """The check with one number of cache columns, which an attention kernel may split differently."""
    prompt_len = 8
    step = model.new_step(width, max(num_positions, prompt_len + 2 * width))
    step.prefill([token_id % model.vocab_size for token_id in range(prompt_len)])
    before = [token_id % model.vocab_size for token_id in range(2, 2 + width)]
    step.begin(prompt_len)
    step.put(0, before)
    step.run(0, width, 0, model.num_layers)
    expected = None
    for company in range(NUM_COMPANIES):
        rng = random.Random(company)
        for slot in range(width):
            # the row always stands at position prompt_len + width, after the same tokens
            step.begin(prompt_len + width - slot)
            lo, hi = (0, width) if company else (slot, slot + 1)
            others = [rng.randrange(model.vocab_size) for _ in range(hi - slot - 1)]
            step.put(lo, [*before[width - slot + lo :], 1, *others])
            step.run(lo, hi, 0, model.num_layers)
            step.verify(0, hi)
            logits = step.logits[slot].clone()
            expected = logits if expected is None else expected
            if not torch.equal(logits, expected):
                raise RowsDependentError(
                    f"at W = {width} in {model.dtype} with {torch.get_num_threads()} threads a row's bits depend on its "
                    f"slot (slot {slot} differs from slot 0), so outputs could differ from vanilla's; try another "
                    f"--threads, --max-drafts or --dtype"
                )
