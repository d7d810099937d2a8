"""What a decode step is, whatever computes it: slots over one K/V cache, segments of layers, tests at their ends.

Shapes: W slots, d model width, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.sampling import Draw
from adadecode.kernels.weights import Block, ExitTest, Gate, Head

Proposals = list[tuple[int, float]]  # token id and probability, one per slot


class Segment(NamedTuple):
    """Slots [lo, hi) pass layers [start, stop)."""

    lo: int
    hi: int
    start: int
    stop: int


class Prefilled(NamedTuple):
    """What a prompt is followed by: next token and its logit as `verify` gives them, and all its `logits` `[V]`."""

    token_id: int
    top: float
    logits: Tensor


class DecodeStep(Protocol):
    """W slots at consecutive positions. A slot holds a token's hidden state between two layers, `hidden` `[W, d]`.

    The engine decides with whole numbers which slots go where; the kernels compute. `logits` `[W, V]` holds what the
    last `verify` computed of its slots.
    """

    width: int
    cache: KVCache
    hidden: Tensor
    logits: Tensor

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        """Compiles or captures, before any clock starts, the segments between `boundaries` and the `tests`.

        From now on the prefill, and every segment that ends at the exit of a block that one of `tests` has, runs that block
        as well, and no other. Raises ValueError for two blocks at one exit.
        """
        ...

    def draw_by(self, draw: Draw | None) -> None:
        """From now on `prefill`, `test`, `run_to_exit` and `verify` give what `draw` draws for the position after a token.

        Slot i, which stands at position p, has the next token of place p + 1 - `draw.first_position`. None: the argmax, as
        in a new step.
        """
        ...

    def read_by(self, head: Head) -> Tensor:
        """The rows `[W, d]` that `head` reads: `hidden`, or what its block made of it when the slots came to its exit."""
        ...

    def prefill(self, prompt_ids: list[int]) -> Prefilled:
        """Runs the prompt through all layers and fills the cache; returns what its last row is followed by.

        The last row's state after all layers is in slot 0 then; where slots stand, `begin` must say anew.
        """
        ...

    def begin(self, first_position: int) -> None:
        """Slot i stands at `first_position + i` from now on."""
        ...

    def put(self, slot: int, token_ids: list[int]) -> None:
        """The embeddings of `token_ids` go to `slot` and the slots after it, before layer 1."""
        ...

    def run(self, lo: int, hi: int, start: int, stop: int) -> None:
        """Slots [lo, hi) pass layers [start, stop); the other slots keep their hidden states."""
        ...

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        """Runs `segment`, then tests slots [first_tested, hi): run, probe and test in one call.

        Where the last slot alone would be tested, the gate may skip it: None then.
        """
        ...

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        """Token id and probability of the most likely next token of slots [lo, hi), by `head`, or of the one drawn."""
        ...

    def probe(self, gate: Gate, slot: int) -> float:
        """The probability `gate` gives for the hidden state in `slot`."""
        ...

    def verify(self, lo: int, hi: int) -> tuple[list[int], list[float]]:
        """Next token and its logit, NaN when any logit is, of slots [lo, hi) by the model's own head.

        Of a drawn token NaN also when the largest logit is infinite.
        """
        ...


def blocks_of(tests: Iterable[ExitTest]) -> dict[int, Block]:
    """The blocks of the heads of `tests`, by exit layer; raises ValueError for two at one exit."""
    blocks: dict[int, Block] = {}
    for block in (test.head.block for test in tests):
        if block is not None and blocks.setdefault(block.exit_layer, block) is not block:
            raise ValueError(f"two blocks at exit layer {block.exit_layer}")
    return blocks


def check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises IndexError for an id that has no embedding, before it is looked up where nothing else would notice."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise IndexError(f"token ids from {min(token_ids)} to {max(token_ids)} in a vocabulary of {vocab_size}")


def check_slots(lo: int, hi: int, width: int) -> None:
    """Raises IndexError unless slots [lo, hi) are among the W = `width` of a step."""
    if not 0 <= lo <= hi <= width:
        raise IndexError(f"slots [{lo}, {hi}) of {width}")


def run_probe_test(step: DecodeStep, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
    """`run_to_exit` by the calls it stands for."""
    step.run(*segment)
    is_alone = first_tested == segment.hi - 1
    if test.gate is not None and is_alone and step.probe(test.gate, first_tested) < test.least:
        return None
    return step.test(test.head, first_tested, segment.hi)
