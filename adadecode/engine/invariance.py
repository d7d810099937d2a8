"""What a model must do on the machine at hand before anything is measured: give finite logits, and rows their own bits."""

import random
from dataclasses import dataclass, replace

import torch

from adadecode.engine.soundness import sound_token
from adadecode.errors import RowsDependentError
from adadecode.kernels.choose import Steps
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Head
from adadecode.model.decoder import DecoderModel

NUM_COMPANIES = 3
REMEDY = "so outputs could differ from vanilla's; try another --threads, --max-drafts or --dtype"
PROMPT_LEN = 8
NUM_POSITIONS = (64, 1024)  # of a short and of a long request, where none is known yet


@torch.inference_mode()
def check_rows_independent(model: DecoderModel, width: int, num_positions: tuple[int, ...] = NUM_POSITIONS) -> None:
    """Raises RowsDependentError unless a row gives the same bits in each of `width` slots, whoever is beside it.

    Runs one token through all layers and the LM head in every slot: alone, and with the tokens before it in the slots below
    and random ones in those above; in a step for each of `num_positions`, or as many of them as the context has. Where
    layers have windows it does so once more past them, in each step that has room for it. Kernels
    are deterministic for a shape, but some choose other instructions for the last rows of a step, and attention may split
    its columns by their number; which do so depends on the library, the number of threads and the chip, so it is tried
    instead of assumed. Raises NotFiniteError when the model gives no finite logits at all.
    """
    first_token = sound_token(model, width)
    if model.kernels == "native":  # to which columns are no shape: as many as all slots take
        window = _smallest_window(model)
        past_window = 0 if window is None else window + 3 * width
        num_positions = (min(num_positions), max(*num_positions, PROMPT_LEN + 2 * width, past_window))
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


@torch.inference_mode()
def check_every_count(model: DecoderModel, width: int, num_positions: int) -> None:
    """Raises RowsDependentError unless a row has the same bits as the first, a middle and the last of 1, 2, ... W rows.

    Kernels may take other instructions for each number of rows; those that compute all W whatever takes part cannot fail.
    Raises NotFiniteError as `check_rows_independent` does.
    """
    if model.kernels == "native":
        num_positions = max(num_positions, PROMPT_LEN + 2 * width)
    row = _row_at(model, width, num_positions, sound_token(model, width))
    if row is None:
        return
    expected = row.bits(0, 0, 1, seed=0)
    for count in range(2, row.num_slots + 1):
        for slot in sorted({0, count // 2, count - 1}):
            hi = min(count, row.room - (row.last - slot))
            if not torch.equal(row.bits(slot, 0, hi, seed=count), expected):
                raise RowsDependentError(
                    f"{row.where()} a row's bits depend on how many there are (slot {slot} of {hi} rows differs from a "
                    f"row alone), {REMEDY}"
                )


@torch.inference_mode()
def check_ties(model: DecoderModel, width: int) -> int:
    """Raises RowsDependentError unless every row takes the lowest of equal logits, among 1, 2, ... W rows.

    The ties are planted: in a copy of the LM head every token of its first half has a twin in the second, behind one layer
    of the model. Returns how many rows had a tie, for equal rows of a head need not give equal bits.
    """
    weights = model.weights
    if weights.borrowed is not None:  # whose head cannot be another
        return 0
    *before, last = weights.head.matrices
    half, planted = len(last) // 2, last.clone()
    planted[half : 2 * half], planted[2 * half :] = planted[:half], planted[:1]
    tied = replace(weights, layers=weights.layers[:1], stages=(), head=Head((*before, planted)))
    is_graphed = model.device.type == "cuda" and model.kernels != "eager"
    kernels = "native" if model.kernels == "native" else "graphs" if is_graphed else "eager"  # none is compiled anew
    steps = Steps(tied, model.steps.prefill, kernels)
    step = steps.new(width, width)
    num_tied = 0
    for count in range(1, min(width, model.context_len) + 1):
        rng = random.Random(count)
        step.begin(0)
        step.put(0, [rng.randrange(model.vocab_size) for _ in range(count)])
        step.run(0, count, 0, 1)
        token_ids, _ = step.verify(0, count)
        for slot, token_id in enumerate(token_ids):
            equal = (step.logits[slot] == step.logits[slot].max()).nonzero().flatten()
            num_tied += equal.numel() > 1
            if equal.numel() and token_id != int(equal[0]):
                raise RowsDependentError(
                    f"at W = {width} in {model.dtype} the argmax of {count} rows takes token {token_id} among equal logits "
                    f"in slot {slot}, and {int(equal[0])} is the lowest, {REMEDY}"
                )
    del step
    steps.drop()
    return num_tied


@dataclass(frozen=True)
class _Row:
    """One token at position `last` of a step, after the same tokens whatever its slot, and who may be beside it."""

    step: DecodeStep
    num_layers: int
    vocab_size: int
    width: int
    num_slots: int  # it is tried in
    room: int  # positions that rows may stand at
    last: int
    token: int
    before: list[int]  # the tokens at the positions before it, one for each slot

    def bits(self, slot: int, lo: int, hi: int, seed: int) -> torch.Tensor:
        """The bytes of its logits in `slot` among slots [lo, hi), those above it drawn by `seed`."""
        rng = random.Random(seed)
        self.step.begin(self.last - slot)
        others = [rng.randrange(self.vocab_size) for _ in range(hi - slot - 1)]
        self.step.put(lo, [*self.before[self.num_slots - slot + lo :], self.token, *others])
        self.step.run(lo, hi, 0, self.num_layers)
        self.step.verify(0, hi)
        return self.step.logits[slot].clone().view(torch.uint8)

    def where(self) -> str:
        """At which shapes, in what and with how many threads."""
        logits = self.step.logits
        columns, threads = self.step.cache.num_columns, torch.get_num_threads()
        return f"at W = {self.width} and S = {columns} in {logits.dtype} with {threads} threads"


def _smallest_window(model: DecoderModel) -> int | None:
    """Positions that the layers see that see fewest; None where all layers see all of them, as far as is known."""
    return min((kind.window for kind in model.weights.kinds if kind.window is not None), default=None)


def _room(model: DecoderModel, num_positions: int) -> int:
    """Positions that rows of a step for `num_positions` may stand at."""
    return min(model.context_len, model.num_columns(num_positions) - 1)


def _past_window(model: DecoderModel, width: int, num_positions: int) -> int | None:
    """Where W rows begin that no longer see all positions, in a step for `num_positions`.

    None where no row of the step leaves a window, or rows after a prompt do.
    """
    window = _smallest_window(model)
    if window is None:
        return None
    first = min(window + width, _room(model, num_positions) - 1 - width)
    return first if first > PROMPT_LEN and first + width >= window else None


def _row_at(
    model: DecoderModel, width: int, num_positions: int, first_token: int, first_position: int | None = None
) -> _Row | None:
    """A row in a step for `num_positions`, with tokens from `first_token` on; None without room for a second token.

    Those before it stand at `first_position` and after, or right after a prompt. Between the prompt and them are whatever
    keys the step has, which stay as they are: it is bits that are compared. Where columns, or the context, are too few for
    W rows after a prompt, as many slots are tried as a request could use.
    """
    room = _room(model, num_positions)
    prompt_len = max(1, min(PROMPT_LEN, room // 2))
    first_position = prompt_len if first_position is None else first_position
    num_slots = min(width, room - first_position - 1)
    if num_slots < 1:
        return None
    step = model.new_step(width, min(num_positions, model.context_len))
    tokens = [(first_token + i) % model.vocab_size for i in range(max(prompt_len, 2 + num_slots))]
    step.prefill(tokens[:prompt_len])
    _, token, *before = tokens[: 2 + num_slots]
    step.begin(first_position)
    step.put(0, before)
    step.run(0, num_slots, 0, model.num_layers)
    last = first_position + num_slots
    return _Row(step, model.num_layers, model.vocab_size, width, num_slots, room, last, token, before)


def _check_at(model: DecoderModel, width: int, num_positions: int, first_token: int) -> None:
    """The check in a step for `num_positions`, with tokens from `first_token` on, in every slot that has room."""
    past_window = _past_window(model, width, num_positions)
    for first_position in (None,) if past_window is None else (None, past_window):
        row = _row_at(model, width, num_positions, first_token, first_position)
        if row is not None:
            _check_slots(row)


def _check_slots(row: _Row) -> None:
    expected = None
    for company in range(NUM_COMPANIES):
        for slot in range(row.num_slots):
            # the row always stands at position `last`, after the same tokens; nobody stands past the room
            lo, hi = (0, min(row.width, row.room - (row.last - slot))) if company else (slot, slot + 1)
            bits = row.bits(slot, lo, hi, seed=company * row.width + slot)
            expected = bits if expected is None else expected
            if not torch.equal(bits, expected):
                raise RowsDependentError(
                    f"{row.where()} a row's bits depend on its slot (slot {slot} differs from slot 0), {REMEDY}"
                )
