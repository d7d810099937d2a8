"""Speculative decoding (Leviathan et al., Chen et al., both 2023): a smaller model drafts, token after token.

Its proposals are parked before the first layer, as n-grams are, so that verification and all that parity rests on are the
same. Unlike the papers it drafts the likeliest token, or draws it by the noise that verification draws by, and may stop
where it is unsure.
"""

from collections.abc import Collection

from adadecode.engine.round import Round
from adadecode.engine.soundness import sound_token
from adadecode.errors import NotFiniteError
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest
from adadecode.model.decoder import DecoderModel

WIDTH = (
    2  # rows of its steps: after a round in which all was accepted it has not read the last draft and the token after
)


def check_draft_model(draft: DecoderModel | None) -> None:
    """Raises NotFiniteError where `draft` gives no finite logits: it would draft nothing, and nobody would know why."""
    if draft is not None:
        try:
            sound_token(draft, WIDTH)
        except NotFiniteError as error:
            raise NotFiniteError(f"--draft-model: its {error}") from error


class ModelDrafter:
    """A drafter at boundary 0: a draft model's own tokens, one after the other, with its own probabilities.

    It has a decode step and a cache of its own. What it read beyond what is certain stays in the cache until other tokens
    take those positions. It is silent about a text that it cannot read: one past its context, or with a token it lacks.
    """

    boundary = 0
    tests: tuple[ExitTest, ...] = ()

    def __init__(
        self,
        gamma: float,
        draft: DecoderModel,
        num_positions: int,
        vocab_size: int,
        eos: Collection[int],
        draw: Draw | None = None,
    ) -> None:
        """Drafts while all of a chain is right with a probability above `gamma`, says `draft`, and to one of `eos`.

        Its text comes to `num_positions` tokens at most; the model that verifies has `vocab_size` and draws by `draw`.
        """
        self.gamma = gamma
        self._draft, self._vocab_size, self._eos = draft, vocab_size, eos
        self._num_positions = min(num_positions, draft.context_len)
        self._step = draft.new_step(WIDTH, self._num_positions)
        self._step.draw_by(draw)
        self._step.prepare((draft.num_layers,), [ExitTest(draft.weights.head)])
        self._certain: list[int] = []
        self._read: list[int] = []  # the tokens whose keys and values are in the cache
        self._is_lost = False

    def extend(self, token_ids: list[int]) -> None:
        """Learns of tokens that are certain; of the prompt, which comes first, the cache is filled at once."""
        is_prompt, first = not self._certain, len(self._certain)
        self._certain += token_ids
        self._is_lost = self._is_lost or not self._can_read(token_ids)
        if self._is_lost:
            return
        if is_prompt:
            self._step.prefill(token_ids)  # what follows it is drawn for nothing, once an output
            self._read = list(token_ids)
        else:
            self._keep(first, token_ids)

    def propose(self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int) -> Proposals:
        """What the draft model goes on with after the round's drafts, as many tokens as there is room for."""
        ahead = round_.token_ids[1:]
        if not self._is_lost:
            self._keep(len(self._certain), ahead)
        chain: Proposals = []
        together = 1.0
        while len(chain) < round_.room and not self._is_lost and self._has_room(ahead):
            token_id, confidence = self._next(ahead)
            together *= confidence
            if not together > self.gamma or token_id >= self._vocab_size:
                break
            chain.append((token_id, together))
            if token_id in self._eos:
                break
            ahead.append(token_id)
        return chain

    def _can_read(self, token_ids: list[int]) -> bool:
        """Whether the draft model has all of `token_ids`, and positions for the text with them."""
        return len(self._certain) <= self._num_positions and max(token_ids, default=0) < self._draft.vocab_size

    def _has_room(self, ahead: list[int]) -> bool:
        """Whether the text and the drafts `ahead` of it have positions."""
        return len(self._certain) + len(ahead) <= self._num_positions

    def _keep(self, first: int, token_ids: list[int]) -> None:
        """Forgets what was read from position `first` on, except for what is as `token_ids` have it."""
        read = self._read[first : first + len(token_ids)]
        num_same = next((i for i, (a, b) in enumerate(zip(read, token_ids, strict=False)) if a != b), len(read))
        del self._read[first + num_same :]

    def _next(self, ahead: list[int]) -> tuple[int, float]:
        """The token after the text and the drafts `ahead`, with its probability; reads what of them is unread."""
        num_certain = len(self._certain)
        del self._read[num_certain + len(ahead) - 1 :]  # the last is read for what it is followed by
        unread = [*self._certain[len(self._read) :], *ahead[max(0, len(self._read) - num_certain) :]]
        last = 0
        for lo in range(0, len(unread), WIDTH):
            rows = unread[lo : lo + WIDTH]
            self._step.begin(len(self._read))
            self._step.put(0, rows)
            self._step.run(0, len(rows), 0, self._draft.num_layers)
            self._read += rows
            last = len(rows) - 1
        [proposal] = self._step.test(self._draft.weights.head, last, last + 1)
        return proposal
