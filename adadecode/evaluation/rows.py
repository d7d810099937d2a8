"""The rows of samples: what one holds, and how it comes of a generation, of an error and of a sample nobody survived.

Loads no torch: the driver of a cluster makes rows of lost samples too.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from adadecode.methods import METHODS, REFERENCE, in_turn
from adadecode.printable import printable
from adadecode.records import Example, Generation, Rejected, Shard, ShardOutcome
from adadecode.report.parity import sample_name
from adadecode.report.schema import LOST_BY
from adadecode.runs.folder import RunFolder, new_attempt
from adadecode.settings import EvalConfig, SamplingSettings, key_text
from adadecode.tasks.turns import at_turn

log = logging.getLogger(__name__)

LOST = "WorkerLost"  # the error_type of a sample that ended every worker
UNANSWERED = "TurnUnanswered"  # and of turns after one that vanilla failed at
GREEDY = SamplingSettings()
MAX_MESSAGE_LEN = 1000  # of error_message, in characters


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A row of the SAMPLES schema, which says what each column means, less what its commit adds: run and attempt.

    None stands for what was not measured.
    """

    task: str
    sample_id: str
    method: str
    repeat: int
    turn: int
    category: str | None
    shard: int
    status: Literal["ok", "error"]

    prompt_len: int | None = None
    output_len: int | None = None
    prompt_token_ids: Sequence[int] | None = None
    output_token_ids: Sequence[int] | None = None
    output_text: str | None = None
    finish_reason: str
    reference: str | None
    correct: bool | None = None
    sampling_key: str | None = None

    ttft_s: float | None = None
    decode_s: float | None = None
    e2e_s: float | None = None
    tpot_s: float | None = None
    step_gaps_s: Sequence[float] | None = None
    num_rounds: int | None = None
    num_drafted: int | None = None
    num_accepted: int | None = None
    exits: Sequence[int] | None = None
    drafted_per_exit: Sequence[int] | None = None
    accepted_per_exit: Sequence[int] | None = None
    draft_depths: Sequence[int] | None = None
    rejected: Sequence[Rejected] | None = None
    layers_per_token: float | None = None

    parity: str | None = None
    logits_equal: bool | None = None
    first_diff_idx: int | None = None
    vanilla_token_id: int | None = None
    method_token_id: int | None = None
    vanilla_margin: float | None = None
    method_margin: float | None = None
    logits_digest: str | None = None
    lossy: bool

    width: int | None = None
    order_idx: int
    worker_id: str
    started_at: datetime
    error_type: str | None = None
    error_message: str | None = None

    def columns(self) -> dict[str, Any]:
        """The values by the names of their columns."""
        return dict(vars(self))


@dataclass
class Turn:
    """One method's turn at a prompt: which row will come of it and, as it goes, when it began and its prompt.

    `answers` are vanilla's of the conversation's turns before, whose number is that of the prompt's own turn; `sampling`
    says how its tokens are drawn.
    """

    shard: Shard
    sample_idx: int
    repeat: int
    method: str
    order_idx: int
    worker_id: str
    answers: tuple[str, ...] = ()
    sampling: SamplingSettings = GREEDY
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    prompt_token_ids: Sequence[int] | None = None

    @property
    def example(self) -> Example:
        """What is decoded: the sample after the answers that were given."""
        return at_turn(self.shard.examples[self.sample_idx], self.answers)

    @property
    def name(self) -> str:
        """`TASK/SAMPLE METHOD`, as a log names it."""
        of = {"task": self.shard.task, "sample_id": self.example.sample_id, "turn": len(self.answers)}
        return printable(f"{sample_name(of)} {self.method}")

    @property
    def sampling_key(self) -> int | None:
        """The key of the noise that draws its tokens, the same for all methods; None where none are drawn."""
        return self.sampling.sampling_key(self.shard.task, self.example.sample_id, self.repeat, len(self.answers))

    @property
    def is_compared(self) -> bool:
        """Whether its output can be held against vanilla's."""
        return METHODS[self.method].is_compared(is_sampled=self.sampling_key is not None)

    def begin(self) -> None:
        """Sets the time at which it began, which a second try does anew."""
        self.started_at = datetime.now(UTC)

    def generation_row(
        self,
        generation: Generation,
        *,
        text: str,
        correct: bool | None,
        logits_digest: str | None,
        width: int | None,
    ) -> SampleRow:
        """The row of `generation`; what counts drafts is None for a method that cannot draft."""
        drafting: dict[str, Any] = {
            "num_drafted": generation.num_drafted,
            "num_accepted": generation.num_accepted,
            "exits": generation.exits,
            "drafted_per_exit": generation.drafted_per_exit,
            "accepted_per_exit": generation.accepted_per_exit,
            "draft_depths": generation.draft_depths,
            "rejected": generation.rejected,
        }
        return SampleRow(
            **self._identity(),
            status="ok",
            output_len=len(generation.output_token_ids),
            output_token_ids=generation.output_token_ids,
            output_text=text,
            finish_reason=generation.finish_reason,
            correct=correct,
            ttft_s=generation.ttft_s,
            decode_s=generation.decode_s,
            e2e_s=generation.e2e_s,
            tpot_s=generation.tpot_s,
            step_gaps_s=generation.step_gaps_s,
            num_rounds=generation.num_rounds,
            layers_per_token=generation.layers_per_token,
            logits_digest=logits_digest,
            width=width,
            **(drafting if METHODS[self.method].drafts else {}),
        )

    def error_row(self, error_type: str, error_message: str) -> SampleRow:
        """The row of a turn that failed: which it is, its prompt if that was made, and the error."""
        return SampleRow(
            **self._identity(),
            status="error",
            finish_reason="error",
            error_type=error_type,
            error_message=error_message[:MAX_MESSAGE_LEN],
        )

    def _identity(self) -> dict[str, Any]:
        example = self.shard.examples[self.sample_idx]
        return {
            "task": self.shard.task,
            "sample_id": example.sample_id,
            "turn": len(self.answers),
            "category": example.category,
            "method": self.method,
            "repeat": self.repeat,
            "shard": self.shard.shard_idx,
            "reference": example.reference,
            "sampling_key": key_text(self.sampling_key),
            "lossy": METHODS[self.method].is_lossy,
            "order_idx": self.order_idx,
            "worker_id": self.worker_id,
            "started_at": self.started_at,
            "prompt_len": None if self.prompt_token_ids is None else len(self.prompt_token_ids),
            "prompt_token_ids": self.prompt_token_ids,
        }


def turns(
    methods: tuple[str, ...],
    shard: Shard,
    sample_idx: int,
    repeat: int,
    worker_id: str,
    answers: tuple[str, ...] = (),
    sampling: SamplingSettings = GREEDY,
) -> list[Turn]:
    """The turns of `methods` at a sample, after the `answers` to its turns before, in the order in which they run.

    Their tokens are drawn as `sampling` says.
    """
    ordered = in_turn(methods, shard.shard_idx + sample_idx + repeat)
    return [
        Turn(shard, sample_idx, repeat, method, idx, worker_id, answers, sampling) for idx, method in enumerate(ordered)
    ]


def unanswered_rows(
    config: EvalConfig, shard: Shard, sample_idx: int, repeat: int, worker_id: str, answers: tuple[str, ...]
) -> list[SampleRow]:
    """An error row for each method and turn after the one that vanilla failed to answer, which comes after `answers`."""
    num_turns = shard.examples[sample_idx].num_turns
    return [
        turn.error_row(UNANSWERED, f"{REFERENCE} failed at turn {len(answers)}, so what comes after it has no prompt")
        for turn_idx in range(len(answers) + 1, num_turns)
        for turn in turns(config.methods, shard, sample_idx, repeat, worker_id, ("",) * turn_idx, config)
    ]


def lost_rows(config: EvalConfig, shard: Shard, sample_idx: int, reason: str) -> list[SampleRow]:
    """An error row for each turn, method and repeat of a sample that no worker survived, with `reason` in its message."""
    return [
        turn.error_row(LOST, f"the sample ended every worker that tried it: {reason}")
        for repeat in range(config.repeats)
        for turn_idx in range(shard.examples[sample_idx].num_turns)
        for turn in turns(config.methods, shard, sample_idx, repeat, LOST_BY, ("",) * turn_idx, config)
    ]


def commit_rows(
    folder: RunFolder, shard: Shard, rows: Sequence[SampleRow], facts: dict[str, Any] | None
) -> ShardOutcome:
    """Commits the rows of `shard`; returns what it came to, which another attempt may have committed first.

    `facts` are those of the worker, None when none survived any of the samples.
    """
    by_whom = {"worker_id": LOST_BY} if facts is None else facts
    if folder.commit_shard(shard.shard_idx, [row.columns() for row in rows], by_whom, new_attempt()):
        log.info("committed %d rows", len(rows))
    else:
        log.info("another attempt was first; its rows count, not these %d", len(rows))
    outcome = folder.committed_outcome(shard.shard_idx)
    assert outcome is not None, shard.shard_idx
    return outcome
