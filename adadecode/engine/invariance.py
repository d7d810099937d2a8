"""The premise of the parity contract, checked on the machine at hand before anything is measured."""

import torch

from adadecode.engine.steps import embed_one
from adadecode.errors import RowsDependentError
from adadecode.model.decoder import DecoderModel

NUM_COMPANIES = 3
CACHE_SIZES = (64, 1024)


@torch.inference_mode()
def check_rows_independent(model: DecoderModel, width: int) -> None:
    """Raises RowsDependentError unless a row gives the same bits in each of `width` slots, whoever is beside it.

    Runs one token through all layers and the LM head in every slot, among random rows of several kinds. Kernels are
    deterministic for a shape, but some choose other instructions for the last rows of a step; which do so depends on
    the library, the number of threads and the chip, so it is tried instead of assumed.
    """
    for num_positions in CACHE_SIZES:
        _check_at(model, width, num_positions)


def _check_at(model: DecoderModel, width: int, num_positions: int) -> None:
    """The check with one number of cache columns, which an attention kernel may split differently."""
    prompt_len = 8
    cache = model.new_cache(max(num_positions, prompt_len + 2 * width))
    model.prefill(torch.arange(prompt_len, device=model.device) % model.vocab_size, cache)
    row = embed_one(model, 1)
    slots = torch.arange(width, device=model.device)
    expected = None
    for company in range(NUM_COMPANIES):
        generator = torch.Generator().manual_seed(company)
        for slot in range(width):
            # the row always stands at position prompt_len + width; the slots after it are its company there
            step = model.step_inputs(prompt_len + width - slot, width, cache)
            hidden = torch.randn(width, model.width, generator=generator).to(row) * row.std()
            hidden[slot] = row
            active = slots >= slot if company else slots == slot
            out = model.run_layers(hidden, 0, model.num_layers, active, step, cache)
            logits = model.lm_head(out)[slot]
            expected = logits if expected is None else expected
            if not torch.equal(logits, expected):
                raise RowsDependentError(
                    f"at W = {width} in {model.dtype} with {torch.get_num_threads()} threads a row's bits depend on its "
                    f"slot (slot {slot} differs from slot 0), so outputs could differ from vanilla's; try another "
                    f"--threads, --max-drafts or --dtype"
                )
