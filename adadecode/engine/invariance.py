"""What a model must do on the machine at hand before anything is measured: give finite logits, and rows their own bits."""

import random

import torch

from adadecode.engine.soundness import sound_token
from adadecode.errors import RowsDependentError
from adadecode.kernels.step import DecodeStep
from adadecode.model.decoder import DecoderModel

NUM_COMPANIES = 3
PROMPT_LEN = 8
NUM_POSITIONS = (64, 1024)  # of a short and of a long request, where none is known yet


@torch.inference_mode()
def check_rows_independent(model: DecoderModel, width: int, num_positions: tuple[int, ...] = NUM_POSITIONS) -> None:
    """Raises RowsDependentError unless a row gives the same bits in each of `width` slots, whoever is beside it.

    Runs one token through all layers and the LM head in every slot: alone, and with the tokens before it in the slots below
    and random ones in those above; in a step for each of `num_positions`, or as many of them as the context has. Kernels
    are deterministic for a shape, but some choose other instructions for the last rows of a step, and attention may split
    its columns by their number; which do so depends on the library, the number of threads and the chip, so it is tried
    instead of assumed. Raises NotFiniteError when the model gives no finite logits at all.
    """
    first_token = sound_token(model, width)
    if model.kernels == "native":  # to which columns are no shape: as many as all slots take
        num_positions = (min(num_positions), max(*num_positions, PROMPT_LEN + 2 * width))
    for columns in {model.num_columns(min(num, model.context_len)): num for num in num_positions}.values():
        _check_at(model, width, columns, first_token)


def check_rows_once(model: DecoderModel, width: int, num_positions: int, checked: set[int]) -> None:
    """`check_rows_independent` for `num_positions`, unless S is in `checked`, to which it is added.

    Which S are needed is known as prompts come. To native kernels they are no shape, and the first check is enough.
    """
    columns = model.num_columns(min(num_positions, model.context_len))
    if columns not in checked and not (checked and model.kernels == "native"):
        check_rows_independent(model, width, (num_positions,))
        checked.add(columns)


def _check_at(model: DecoderModel, width: int, num_positions: int, first_token: int) -> None:
    """The check in a step for `num_positions`, with tokens from `first_token` on.

    Where its columns, or the context, are too few for W rows after a prompt, as many slots are tried as a request could
    use.
    """
    room = min(model.context_len, model.num_columns(num_positions) - 1)  # positions
    prompt_len = max(1, min(PROMPT_LEN, room // 2))
    num_slots = min(width, room - prompt_len - 1)
    if num_slots < 1:
        return  # there is no room for a second token
    last = prompt_len + num_slots  # the position of the row
    step = model.new_step(width, min(num_positions, model.context_len))
    tokens = [(first_token + i) % model.vocab_size for i in range(max(prompt_len, 2 + num_slots))]
    step.prefill(tokens[:prompt_len])
    _, token, *before = tokens[: 2 + num_slots]
    step.begin(prompt_len)
    step.put(0, before)
    step.run(0, num_slots, 0, model.num_layers)
    expected = None
    for company in range(NUM_COMPANIES):
        rng = random.Random(company)
        for slot in range(num_slots):
            # the row always stands at position `last`, after the same tokens; nobody stands past the room
            step.begin(last - slot)
            lo, hi = (0, min(width, room - (last - slot))) if company else (slot, slot + 1)
            others = [rng.randrange(model.vocab_size) for _ in range(hi - slot - 1)]
            step.put(lo, [*before[num_slots - slot + lo :], token, *others])
            bits = _bits_of(step, slot, lo, hi, model.num_layers)
            expected = bits if expected is None else expected
            if not torch.equal(bits, expected):
                raise RowsDependentError(
                    f"at W = {width} and S = {step.cache.num_columns} in {model.dtype} with {torch.get_num_threads()} "
                    f"threads a row's bits depend on its slot (slot {slot} differs from slot 0), so outputs could differ "
                    f"from vanilla's; try another --threads, --max-drafts or --dtype"
                )


def _bits_of(step: DecodeStep, slot: int, lo: int, hi: int, num_layers: int) -> torch.Tensor:
    """The bytes of the logits of `slot` after slots [lo, hi) have passed all layers."""
    step.run(lo, hi, 0, num_layers)
    step.verify(0, hi)
    return step.logits[slot].clone().view(torch.uint8)
